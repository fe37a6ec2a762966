"""One pass for several observers, within a memory that is bounded."""

import pytest

from limbeck.errors import UserError
from limbeck.evaluation.attention import AttentionObserver
from limbeck.evaluation.blocks import BlockPools
from limbeck.evaluation.cka import LayerGrams
from limbeck.evaluation.layers import check_offered, watch, without_pixels
from limbeck.records import Tap
from tests.evaluation.images import batches_of
from tests.fakes import FakeEncoder
from tests.recipes.own_teachers import Convnet


def observers_of(encoder):
    return [LayerGrams(encoder), AttentionObserver(encoder), BlockPools(encoder)]


def said_by(observers, labels):
    grams, attention, pools = observers
    embeddings = pools.embeddings(batches_of(labels, 16))
    return [grams.take(), *attention.result().distance, *(each.features for each in embeddings)]


def test_one_pass_serves_all(images):
    encoder = FakeEncoder()
    watch(encoder, images, observers_of(encoder))
    assert encoder.num_calls == 1


@pytest.mark.parametrize("budget", [1, 400, 3000, 10**9])
def test_the_memory_changes_nothing(images, monkeypatch, budget):
    encoder = FakeEncoder()
    alone = observers_of(encoder)
    for observer in alone:
        watch(encoder, images, [observer])
    monkeypatch.setattr("limbeck.evaluation.layers.BUDGET", budget)
    together = observers_of(encoder)
    watch(encoder, images, together)
    for one, other in zip(said_by(alone, images), said_by(together, images), strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-4)


def test_the_encoder_s_mode_is_its_own_again(images):
    encoder = FakeEncoder().train()
    watch(encoder, images, [BlockPools(encoder)])
    assert encoder.training


def test_what_was_seen_holds_no_pixels(images):
    first, second = map(without_pixels, batches_of(images, 8))
    assert first.images.numel() == 0 and second.keys == tuple(map(str, range(8, 16)))


def test_a_network_without_blocks():
    with pytest.raises(UserError, match="Probing of blocks needs a network of blocks"):
        check_offered(Convnet(), [Tap("tokens", 0)], "Probing of blocks")
