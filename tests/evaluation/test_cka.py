"""CKA: golden numbers, a slow reference, what leaves it unchanged, and what has no similarity."""

import math

import pytest
import torch

from limbeck.errors import NotFiniteError, UserError
from limbeck.evaluation.cka import LayerGrams, MinibatchCka, gram, hsic, layer_taps
from limbeck.evaluation.layers import watch
from limbeck.records import Tap
from tests.evaluation.images import batches_of, layer_cka
from tests.fakes import FakeEncoder


def slow_hsic(k, l):  # noqa: E741
    """The formula, entry by entry."""
    n = len(k)
    k, l = ([[0 if i == j else m[i][j] for j in range(n)] for i in range(n)] for m in (k, l))  # noqa: E741
    indices = range(n)
    trace = sum(k[i][j] * l[j][i] for i in indices for j in indices)
    sums = [sum(m[i][j] for i in indices for j in indices) for m in (k, l)]
    product = sum(k[i][j] * l[j][q] for i in indices for j in indices for q in indices)
    total = trace + sums[0] * sums[1] / ((n - 1) * (n - 2)) - 2 / (n - 2) * product
    return total / (n * (n - 3))


def of(values):
    return torch.tensor(values, dtype=torch.float64).reshape(len(values), -1)


def triple(x, y):
    k, l = (raw @ raw.T for raw in (x, y))  # noqa: E741
    return [float(hsic(a[None], b[None])) for a, b in ((k, k), (k, l), (l, l))]


def cka_of(*batches):
    found = MinibatchCka()
    for x, y in batches:
        found.update(gram(x)[None], gram(y)[None])
    return found.result().cka[0][0]


GOLDEN = [
    ([0, 1, 2, 3, 4], [0, 1, 4, 9, 16], (31 / 6, 469 / 6, 12769 / 10), 0.9623608058),
    ([0, 1, 2, 3, 4, 5], [0, 1, 4, 9, 16, 25], (21 / 2, 4541 / 18, 201443 / 30), 0.9500990511),
    (
        [(1, 0), (0, 1), (1, 1), (2, 0), (0, 3)],
        [(1, 2), (2, 1), (0, 1), (1, 1), (3, 0)],
        (2, 11 / 15, 4 / 3),
        0.4490731195,
    ),
]


@pytest.mark.parametrize(("x", "y", "expected", "cka"), GOLDEN)
def test_golden_numbers(x, y, expected, cka):
    assert triple(of(x), of(y)) == pytest.approx(expected, rel=1e-12)
    assert cka_of((of(x), of(y))) == pytest.approx(cka, abs=1e-10)


def test_batches_are_a_ratio_of_sums():
    one, other = of([0, 1, 2, 3, 4]), of([2, 0, 1, 5, 1])
    batches = [(one, one**2), (other, other**2)]
    assert cka_of(*batches) == pytest.approx(0.9557692757, abs=1e-10)
    mean_of_ratios = (cka_of(batches[0]) + cka_of(batches[1])) / 2
    assert mean_of_ratios == pytest.approx(0.9608186053, abs=1e-10)  # the wrong way


def test_the_slow_reference():
    x, y = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    assert float(hsic(k[None], l[None])) == pytest.approx(slow_hsic(k.tolist(), l.tolist()))
    stacked = hsic(torch.stack((k, l)), torch.stack((l, k, k)))
    assert stacked.shape == (2, 3)
    assert float(stacked[1, 0]) == pytest.approx(slow_hsic(l.tolist(), l.tolist()))


def test_what_changes_nothing():
    x, y = torch.randn(12, 6, dtype=torch.float64), torch.randn(12, 4, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    shift = 1e3 * torch.randn(6, dtype=torch.float64)
    expected = cka_of((x, y))
    assert cka_of((x, x)) == pytest.approx(1, abs=1e-12)
    for same in (x @ rotation, -7 * x, x + shift, torch.cat((x, torch.zeros(12, 3)), 1)):
        assert cka_of((same, y)) == pytest.approx(expected, abs=1e-9)
        assert cka_of((x, same)) == pytest.approx(1, abs=1e-9)
    assert cka_of((y, x)) == pytest.approx(expected, abs=1e-12)
    assert abs(expected) < 0.9  # it is not 1 for all


def test_the_mean_that_is_taken_off_does_not_count():
    """Without centring, as the formula stands, the same number."""
    x = torch.randn(9, 5, dtype=torch.float64) + 3
    raw = x @ x.T
    assert float(hsic(gram(x)[None], gram(x)[None])) == pytest.approx(
        float(hsic(raw[None], raw[None]))
    )


def test_two_layers_of_two_encoders(images):
    first, second = FakeEncoder(depth=3), FakeEncoder(embed_dim=12, seed=1)
    found = layer_cka(first, second, batches_of(images, 8))
    assert (len(found.cka), len(found.cka[0])) == (4, 3)
    assert (found.num_images, found.num_batches, found.reasons) == (16, 2, [])
    assert all(-0.5 < value <= 1 for row in found.cka for value in row)
    own = layer_cka(first, first, batches_of(images, 8))
    for layer in range(4):
        assert own.cka[layer][layer] == pytest.approx(1, abs=1e-9)


def test_layers_are_the_normed_inputs_and_the_output(images):
    encoder = FakeEncoder()
    taps = layer_taps(encoder)
    assert taps == (Tap("attention_input", 0), Tap("attention_input", 1), Tap("output"))
    grams, pooled = LayerGrams(encoder), LayerGrams(encoder, is_pooled=True)
    watch(encoder, images, [grams, pooled])
    said = encoder(images, None, taps)
    of_mean = pooled.take()
    for layer, (tap, own) in enumerate(zip(taps, grams.take(), strict=True)):
        patches = said.taps[tap][:, 1:].double()
        x = (patches - patches.mean(0)).flatten(1)
        torch.testing.assert_close(own, x @ x.T)
        mean = patches.mean(1) - patches.mean((0, 1))
        torch.testing.assert_close(of_mean[layer], mean @ mean.T, rtol=1e-5, atol=1e-5)


def test_a_batch_is_not_kept(images):
    encoder = FakeEncoder()
    grams = LayerGrams(encoder)
    for part in images.split(8):
        watch(encoder, part, [grams])
        assert grams.take().shape == (3, 8, 8)


def test_an_encoder_of_another_image_size(images):
    small = FakeEncoder()
    found = layer_cka(small, small, batches_of(images.repeat(1, 1, 2, 2), 8))
    assert found.num_images == 16  # images of 16 px are resized to 8


def test_too_few_images(images):
    with pytest.raises(UserError, match="A batch of 3 images is too small .* needs 4 or more"):
        layer_cka(FakeEncoder(), FakeEncoder(), batches_of(images[:3], 8))
    with pytest.raises(UserError, match="There are no images to compare"):
        layer_cka(FakeEncoder(), FakeEncoder(), [])


def test_a_layer_that_says_the_same_of_all_has_no_similarity():
    x = torch.randn(6, 4, dtype=torch.float64)
    found = MinibatchCka()
    found.update(torch.stack((gram(x), gram(torch.full((6, 4), 0.1)))), gram(x)[None])
    result = found.result()
    assert result.cka[0][0] == pytest.approx(1) and result.cka[1] == [None]
    assert result.reasons == [
        "Layer 1 of the first network says the same of every image (its HSIC is 0)."
    ]
    other = MinibatchCka()
    other.update(gram(x)[None], gram(torch.zeros(6, 4))[None])
    assert other.result().cka == [[None]] and "the second network" in other.result().reasons[0]


def test_unrelated_features_may_be_a_little_below_zero():
    generator = torch.Generator().manual_seed(3)
    values = []
    for _ in range(40):
        x, y = torch.randn(2, 8, 3, generator=generator, dtype=torch.float64)
        values.append(cka_of((x, y)))
    assert min(values) < 0 < max(values)
    assert abs(sum(values) / 40) < 0.1 and not any(math.isnan(value) for value in values)


def test_what_is_not_finite_is_said(images):
    encoder = FakeEncoder()
    with torch.no_grad():
        encoder.weight[0, 0] = torch.nan
    with pytest.raises(NotFiniteError, match="similarity of the layers is not finite"):
        layer_cka(encoder, encoder, batches_of(images, 8))
