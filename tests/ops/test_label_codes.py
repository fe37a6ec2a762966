"""Soft labels as bytes: their size, how far they come back, and corner cases."""

import struct

import pytest
import torch

from benchmarks.soft_labels import KEY_BYTES, LEVELS, mean_divergence, peaked_logits, published
from limbeck.ops.label_codes import LabelCodec
from limbeck.ops.soft_labels import top_k
from limbeck.records import SoftLabels
from tests.ops.labels import dense_target

PUBLISHED_BYTES = {(21841, 100): 0.85 * (404 + 15), (1000, 10): 44}


def round_trip(labels):
    codec = LabelCodec(labels.classes.shape[1], labels.num_classes)
    records = codec.encode(labels)
    assert records.dtype == torch.uint8 and records.shape == (len(labels.rest), codec.num_bytes)
    return codec.decode(records)


def assert_sound(labels):
    """Descending, adding up to 1, and never below what the others have."""
    num_others = labels.num_classes - labels.classes.shape[1]
    total = labels.probs.double().sum(1) + labels.rest
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-6, rtol=0)
    assert (labels.probs.diff(dim=1) <= 0).all() and (labels.rest >= 0).all()
    assert (labels.probs[:, -1] >= labels.rest / max(1, num_others) * (1 - 1e-6)).all()


@pytest.mark.parametrize("sizes", LEVELS, ids=str)
def test_a_record_with_its_key_is_no_larger_than_promised(sizes):
    num_classes, k = sizes
    assert LabelCodec(k, num_classes).num_bytes + KEY_BYTES <= PUBLISHED_BYTES[sizes]


def test_bytes_are_what_the_table_says():
    labels = SoftLabels(
        torch.tensor([[0.5, 0.25, 0.125, 0.0625]]), torch.tensor([[7, 2, 5, 1]]),
        torch.tensor([0.0625]), 10,
    )  # fmt: skip
    (record,) = LabelCodec(4, 10).encode(labels).tolist()
    # 0.125 is half way in the logarithm: 2047.5, rounded to the even neighbour.
    assert bytes(record) == struct.pack("<fff", 0.0625, 0.25, 0.0625) + bytes(
        [0x27, 0x15, 2048 & 255, 2048 >> 8]
    )


@pytest.mark.parametrize("level", "ABC")
@pytest.mark.parametrize("sizes", LEVELS, ids=str)
def test_recovered_labels_are_no_further_from_the_dense_ones_than_the_published(sizes, level):
    num_classes, k = sizes
    logits = peaked_logits(48, num_classes, *LEVELS[sizes][level])
    labels = top_k(logits, k)
    recovered = round_trip(labels)
    assert_sound(recovered)
    assert torch.equal(recovered.classes, labels.classes)
    exact = logits.double().softmax(1)
    assert mean_divergence(exact, recovered) <= mean_divergence(exact, published(labels))
    # Steps of up to 40 octaves / 4095, so at most 0.34 % off; the largest has the others' sum.
    torch.testing.assert_close(recovered.probs, labels.probs, rtol=3.4e-3, atol=1e-6)
    torch.testing.assert_close(recovered.rest, labels.rest, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(("k", "num_classes"), [(1, 1), (1, 2), (2, 2), (3, 3), (4, 4), (7, 7)])
@pytest.mark.parametrize("sharpness", [0.0, 1.0, 200.0], ids=["ties", "soft", "zeros"])
def test_few_classes(k, num_classes, sharpness):
    labels = top_k(sharpness * torch.randn(6, num_classes), k)
    recovered = round_trip(labels)
    assert_sound(recovered)
    torch.testing.assert_close(dense_target(recovered), dense_target(labels), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 40])
@pytest.mark.parametrize("num_classes", [41, 2**15 + 1, 2**20])
def test_many_classes(k, num_classes):
    logits = 3 * torch.randn(2, num_classes)
    logits[:, -1] = 30  # the highest id
    labels = top_k(logits, k)
    recovered = round_trip(labels)
    assert_sound(recovered)
    assert torch.equal(recovered.classes, labels.classes)
    torch.testing.assert_close(recovered.probs, labels.probs, rtol=2e-3, atol=1e-6)


def test_zeros_ties_and_a_rest_of_nothing_come_back():
    probs = torch.tensor([[1.0, 0, 0, 0, 0], [0.5, 0.5, 0, 0, 0], [0.2] * 5, [0.1] * 5])
    rest = 1 - probs.sum(1)
    classes = torch.arange(5).expand(4, 5)
    recovered = round_trip(SoftLabels(probs, classes, rest, 10))
    assert_sound(recovered)
    torch.testing.assert_close(recovered.probs, probs, atol=1e-6, rtol=0)
    torch.testing.assert_close(recovered.rest, rest, atol=1e-6, rtol=0)


def test_a_rest_that_rounding_made_negative_is_nothing():
    labels = SoftLabels(
        torch.tensor([[0.75, 0.25]]), torch.tensor([[3, 1]]), torch.tensor([-3e-4]), 4
    )
    recovered = round_trip(labels)
    assert recovered.rest.item() == 0 and recovered.probs.tolist() == [[0.75, 0.25]]


def test_an_image_is_read_the_same_in_every_batch():
    codec = LabelCodec(10, 1000)
    records = codec.encode(top_k(3 * torch.randn(5, 1000), 10))
    whole, one = codec.decode(records), codec.decode(records[3:4])
    assert torch.equal(whole.probs[3:4], one.probs) and torch.equal(whole.rest[3:4], one.rest)


def test_what_can_not_be_encoded_is_refused():
    for k, num_classes in ((0, 5), (6, 5), (1, 2**25 + 1)):
        with pytest.raises(ValueError, match=f"{k} of {num_classes} classes"):
            LabelCodec(k, num_classes)
    with pytest.raises(ValueError, match="Labels of 3 of 9 classes are no labels of 4 of 9"):
        LabelCodec(4, 9).encode(top_k(torch.randn(2, 9), 3))
