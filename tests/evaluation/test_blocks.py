"""Probes of every block: the same numbers as one block at a time."""

import pytest
import torch

from limbeck.errors import NotFiniteError, UserError
from limbeck.evaluation.blocks import probe_blocks
from limbeck.evaluation.probes import probe_scores
from limbeck.records import Tap
from tests.evaluation.images import batches_of, embed_blocks
from tests.fakes import FakeEncoder


def test_embeddings_are_the_pooled_tokens(images):
    encoder = FakeEncoder()
    labels = torch.arange(16) % 3
    found = embed_blocks(encoder, batches_of(images, 5, labels))
    of_cls = embed_blocks(encoder, batches_of(images, 5), pool="cls")
    for block in range(2):
        tokens = encoder(images, None, (Tap("tokens", block),)).taps[Tap("tokens", block)]
        torch.testing.assert_close(found[block].features, tokens[:, 1:].mean(1))
        torch.testing.assert_close(of_cls[block].features, tokens[:, 0])
        assert found[block].labels.equal(labels) and of_cls[block].labels is None
    assert encoder.num_calls == 4 + 4 + 2  # all blocks at once


def test_scores_of_each_block(images):
    labels = (images.mean((1, 2, 3)) > images.mean()).long()
    train, test = (
        embed_blocks(FakeEncoder(), batches_of(images[part], 8, labels[part]))
        for part in (slice(0, 10), slice(10, 16))
    )
    found = probe_blocks(train, test)
    assert [set(scores) for scores in found] == [{"knn_top1", "linear_top1"}] * 2
    expected = probe_scores(train[1], test[1], num_labels=())
    assert found[1]["linear_top1"].mean == expected["linear_top1"].mean


def test_what_is_refused(images):
    bare = FakeEncoder(num_prefix_tokens=0)
    with pytest.raises(UserError, match="has no CLS token"):
        embed_blocks(bare, batches_of(images, 8), pool="cls")
    unlabelled = embed_blocks(bare, batches_of(images, 8))
    with pytest.raises(UserError, match="These images have no labels"):
        probe_blocks(unlabelled, unlabelled)
    with torch.no_grad():
        bare.weight[0, 0] = torch.inf
    with pytest.raises(NotFiniteError, match="output of block 0 is not finite"):
        embed_blocks(bare, batches_of(images, 8))
