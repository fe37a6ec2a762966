"""Attention distance and entropy: golden numbers, a slow reference, and what is left out."""

import math

import pytest
import torch

from limbeck.errors import UserError
from limbeck.evaluation.attention import (
    AttentionObserver,
    attention_maps,
    attention_statistics,
    has_attention_map,
    patch_distances,
)
from limbeck.evaluation.layers import watch
from limbeck.records import Tap
from tests.evaluation.images import batches_of, measure_attention
from tests.fakes import FakeEncoder

SIDE = 14
TRUE = patch_distances((SIDE, SIDE), (SIDE, SIDE), (224, 224))


def statistics(scores):
    distance, entropy = attention_statistics(scores[None, None], TRUE)
    return float(distance), float(entropy)


def test_golden_numbers_of_an_even_map():
    distance, entropy = statistics(torch.zeros(196, 196, dtype=torch.float64))
    assert distance == pytest.approx(116.4922270918, abs=1e-9)
    assert distance / 16 == pytest.approx(7.2807641932, abs=1e-9)
    assert distance / 16 * 14 == pytest.approx(101.9306987055, abs=1e-9)
    assert entropy == pytest.approx(5.2779186784, abs=1e-9)
    assert math.log(196) == pytest.approx(5.2781146592, abs=1e-9)
    assert float(TRUE[0].mean()) == pytest.approx(161.0301673851, abs=1e-9)
    assert float(TRUE[7 * SIDE + 7].mean()) == pytest.approx(86.0189331386, abs=1e-9)
    assert float(TRUE.max()) == pytest.approx(16 * 13 * math.sqrt(2), abs=1e-9)


def test_golden_numbers_of_one_hot_maps():
    own = torch.full((196, 196), -1e4, dtype=torch.float64)
    own.fill_diagonal_(0)
    distance, entropy = statistics(own)
    assert distance == 0
    assert entropy == pytest.approx(-1e-6, abs=1e-11)
    right = torch.full((196, 196), -1e4, dtype=torch.float64)
    for query in range(196):
        if query % SIDE < SIDE - 1:
            right[query, query + 1] = 0
    has_neighbour = [query for query in range(196) if query % SIDE < SIDE - 1]
    distance, _ = attention_statistics(right[has_neighbour][None, None], TRUE[has_neighbour])
    assert float(distance) == pytest.approx(16, abs=1e-9)


def slow(scores, grid, px):
    """The definition, query by query and key by key, for one head (N, N) with one CLS."""
    rows, columns = grid
    places = [(row, column) for row in range(rows) for column in range(columns)]
    total_distance = total_entropy = 0.0
    for q, (row, column) in enumerate(places):
        weights = [math.exp(scores[q + 1][k + 1]) for k in range(len(places))]
        a = [weight / sum(weights) for weight in weights]
        for k, (r, c) in enumerate(places):
            total_distance += a[k] * px * math.hypot(row - r, column - c)
            total_entropy -= a[k] * math.log(a[k] + 1e-6)
    return total_distance / len(places), total_entropy / len(places)


def test_the_slow_reference(images):
    encoder = FakeEncoder(depth=3)
    found = measure_attention(encoder, batches_of(images, 5))
    assert found.num_images == 16
    scores = encoder(images, None, tuple(Tap("scores", block) for block in range(3))).taps
    for block in range(3):
        for head in range(2):
            values = [slow(one[head].tolist(), (2, 2), 4) for one in scores[Tap("scores", block)]]
            for place, measured in enumerate((found.distance, found.entropy)):
                expected = sum(value[place] for value in values) / 16
                assert measured[block][head] == pytest.approx(expected, rel=1e-5)


def test_the_unit_of_the_released_code(images):
    encoder = FakeEncoder()
    true, other = (
        measure_attention(encoder, batches_of(images, 8), cell_px=px) for px in (None, 3.5)
    )
    assert other.distance[0] == pytest.approx([value * 3.5 / 4 for value in true.distance[0]])
    assert other.entropy == true.entropy
    assert other.uniform_distance[0] == pytest.approx(true.uniform_distance[0] * 3.5 / 4)


def test_the_even_map_stands_beside(images):
    found = measure_attention(FakeEncoder(), batches_of(images, 8))
    assert found.uniform_distance == pytest.approx([(4 + 4 + math.hypot(4, 4)) / 4] * 2)
    assert found.uniform_entropy == pytest.approx([math.log(4)] * 2)


@pytest.mark.parametrize("num_prefix_tokens", [0, 1, 3])
def test_prefix_tokens_are_left_out(images, num_prefix_tokens):
    """Their scores change nothing."""

    class Loud(FakeEncoder):
        def forward(self, images, ids_keep=None, taps=(), mask_token=None):
            said = super().forward(images, ids_keep, taps)
            for value in said.taps.values():
                value[:, :, :num_prefix_tokens] += 100
                value[:, :, :, :num_prefix_tokens] += 100
            return said

    plain = FakeEncoder(num_prefix_tokens=num_prefix_tokens)
    loud = Loud(num_prefix_tokens=num_prefix_tokens)
    for one, other in zip(
        measure_attention(plain, batches_of(images, 8)).distance,
        measure_attention(loud, batches_of(images, 8)).distance,
        strict=True,
    ):
        assert one == pytest.approx(other, rel=1e-6)


def test_blocks_with_windows_are_left_out(images):
    encoder = FakeEncoder(depth=3)
    encoder._facts["global_blocks"] = (1,)
    found = measure_attention(encoder, batches_of(images, 8))
    assert [each is None for each in found.distance] == [True, False, True]
    assert [each is None for each in found.uniform_entropy] == [True, False, True]


def test_queries_may_be_coarser_than_keys():
    distances = patch_distances((1, 1), (2, 2), (8, 8))
    torch.testing.assert_close(distances, torch.full((1, 4), math.hypot(2, 2)).double())


def test_images_that_are_not_square():
    distances = patch_distances((2, 3), (2, 3), (8, 12))
    assert distances[0].tolist() == pytest.approx([0, 4, 8, 4, math.hypot(4, 4), math.hypot(4, 8)])


def test_small_slices_say_the_same(images, monkeypatch):
    whole, sliced = AttentionObserver(FakeEncoder()), AttentionObserver(FakeEncoder())
    encoder = FakeEncoder()
    watch(encoder, images, [whole])
    num_calls = encoder.num_calls
    monkeypatch.setattr("limbeck.evaluation.layers.BUDGET", 300)  # one block's scores of one image
    watch(encoder, images, [sliced])
    assert num_calls == 1 and encoder.num_calls == 1 + 2 * 16
    assert sliced.result().num_images == 16
    for one, other in zip(whole.result().distance, sliced.result().distance, strict=True):
        assert one == pytest.approx(other)


def test_an_encoder_without_scores(images):
    class Silent(FakeEncoder):
        def offered_taps(self):
            return ("tokens", "output")

    with pytest.raises(UserError, match="distance needs the encoder's 'scores', and it offers onl"):
        measure_attention(Silent(), batches_of(images, 8))


def test_rows_at_a_time_say_the_same(monkeypatch):
    scores = torch.randn(2, 3, 196, 196)
    whole = attention_statistics(scores, TRUE)
    monkeypatch.setattr("limbeck.evaluation.attention.CHUNK_ELEMENTS", 2 * 196 * 50)
    for one, other in zip(whole, attention_statistics(scores, TRUE), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("num_prefix_tokens", [0, 1, 3])
def test_where_the_last_block_looks(images, num_prefix_tokens):
    encoder = FakeEncoder(num_prefix_tokens=num_prefix_tokens)
    found = attention_maps(encoder, images[:2])
    tap = Tap("scores", 1)
    looks = encoder(images[:2], None, (tap,)).taps[tap].softmax(-1).mean(1)
    rows = looks[:, :1] if num_prefix_tokens else looks  # the CLS token's, or all patches'
    expected = rows[:, :, num_prefix_tokens:].mean(1)
    expected = (expected / expected.max(1, keepdim=True).values).reshape(2, 2, 2)
    torch.testing.assert_close(found, expected)
    assert found.amax((1, 2)).tolist() == [1, 1]


def test_windows_have_no_map_of_the_whole():
    encoder = FakeEncoder()
    assert has_attention_map(encoder)
    encoder._facts["global_blocks"] = ()
    assert not has_attention_map(encoder)
