"""Batches of random images, for the encoders of tests/fakes.py."""

import torch

from limbeck.evaluation.attention import AttentionObserver
from limbeck.evaluation.blocks import BlockPools
from limbeck.evaluation.cka import LayerGrams, MinibatchCka
from limbeck.evaluation.layers import watch, without_pixels
from limbeck.records import Batch


def batches_of(images, size, labels=None):
    """Batches of at most ``size`` of the images, with labels if given."""
    batches = []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        own = None if labels is None else labels[start : start + size]
        keys = tuple(str(start + index) for index in range(len(part)))
        batches.append(Batch(part, part, own, keys, torch.zeros(len(part), dtype=torch.int64)))
    return batches


def seen_by(observer, encoder, batches):
    """The observer after it has seen all batches, and the batches without their pixels."""
    seen = []
    for batch in batches:
        watch(encoder, batch.images, [observer])
        seen.append(without_pixels(batch))
    return observer, seen


def measure_attention(encoder, batches, **options):
    """Attention distance and entropy over batches."""
    return seen_by(AttentionObserver(encoder, **options), encoder, batches)[0].result()


def embed_blocks(encoder, batches, **options):
    """Embeddings by block of all images of batches."""
    observer, seen = seen_by(BlockPools(encoder, **options), encoder, batches)
    return observer.embeddings(seen)


def layer_cka(first, second, batches):
    """CKA of all layers of two encoders on the same images."""
    one, other, found = LayerGrams(first), LayerGrams(second), MinibatchCka()
    for batch in batches:
        watch(first, batch.images, [one])
        watch(second, batch.images, [other])
        found.update(one.take(), other.take())
    return found.result()
