"""Embeddings: pooling, modes, sizes, labels and logits."""

import pytest
import torch

from limbeck.errors import RunError, UserError
from limbeck.evaluation.embed import embed, evaluating
from limbeck.records import Batch, Tap
from tests.fakes import FakeEncoder


def batch(num, *, first=0, labels=True, size=8):
    images = torch.rand(num, 3, size, size)
    keys = tuple(f"image {first + i}" for i in range(num))
    of_image = torch.arange(num) % 3 if labels else None
    return Batch(images, images, of_image, keys, torch.arange(num))


def test_the_mean_is_over_patches_without_the_prefix():
    encoder, batches = FakeEncoder(num_prefix_tokens=2), [batch(3), batch(2, first=3)]
    found = embed(encoder, batches)
    expected = [encoder(one.images).tokens[:, 2:].mean(1) for one in batches]
    torch.testing.assert_close(found.features, torch.cat(expected))
    assert found.features.dtype == torch.float32 and not found.features.requires_grad
    assert found.labels.tolist() == [0, 1, 2, 0, 1]
    assert found.keys == tuple(f"image {i}" for i in range(5)) and len(found) == 5


def test_cls_is_the_first_token():
    encoder, one = FakeEncoder(num_prefix_tokens=2), batch(3)
    torch.testing.assert_close(
        embed(encoder, [one], pool="cls").features, encoder(one.images).tokens[:, 0]
    )


def test_cls_of_an_encoder_without_one_is_refused():
    with pytest.raises(UserError, match="no CLS token"):
        embed(FakeEncoder(num_prefix_tokens=0), [batch(2)], pool="cls")


def test_logits_come_along_where_there_is_a_classifier():
    encoder, one = FakeEncoder(), batch(4)
    expected = encoder(one.images, None, (Tap("logits"),)).taps[Tap("logits")]
    torch.testing.assert_close(embed(encoder, [one]).logits, expected)
    encoder._facts["num_classes"] = 0
    assert embed(encoder, [one]).logits is None


def test_labels_are_all_or_none():
    encoder = FakeEncoder()
    assert embed(encoder, [batch(2, labels=False)]).labels is None
    assert embed(encoder, [batch(2), batch(2, first=2, labels=False)]).labels is None


def test_each_part_gets_its_mode_back_even_after_an_error():
    encoder = FakeEncoder().train()
    encoder.head.eval()  # a frozen part inside a training model
    with pytest.raises(KeyError), evaluating(encoder):
        assert not encoder.training
        raise KeyError
    embed(encoder, [batch(2)])
    assert encoder.training and not encoder.head.training


def test_images_of_another_size_are_resized():
    encoder = FakeEncoder()
    flat = batch(2, size=16)
    flat.images.fill_(0.25)
    same = batch(2)
    same.images.fill_(0.25)
    torch.testing.assert_close(embed(encoder, [flat]).features, embed(encoder, [same]).features)


def test_a_lower_precision_is_close_and_really_lower():
    encoder, one = FakeEncoder(), batch(4)
    full, low = embed(encoder, [one]), embed(encoder, [one], precision="bf16")
    assert low.features.dtype == torch.float32
    assert not torch.equal(full.features, low.features)
    # bf16 keeps 8 bits: a relative error of 0.4 % per product, sums of 48 of them.
    torch.testing.assert_close(low.features, full.features, rtol=0.02, atol=0.05)


def test_no_images_and_bad_features_are_said():
    with pytest.raises(UserError, match="no images"):
        embed(FakeEncoder(), [])
    broken = FakeEncoder()
    with torch.no_grad():
        broken.weight[0, 0] = torch.nan
    with pytest.raises(RunError, match="not finite in fp32"):
        embed(broken, [batch(2)])
