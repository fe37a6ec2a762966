import random

import numpy as np
import pytest
import torch

from limbeck.data.mixing import mix
from limbeck.data.options import MixOptions
from limbeck.errors import UserError
from limbeck.records import Batch

MIXUP = MixOptions(mixup_alpha=0.8, label_smoothing=0.1)
CUTMIX = MixOptions(cutmix_alpha=1.0)
BOTH = MixOptions(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1)
NUM_CLASSES = 5


def make_batch(size, teacher=False):
    images = torch.rand(size, 3, 16, 16)
    return Batch(
        images=images,
        teacher_images=images / 2 if teacher else images,
        labels=torch.arange(size) % NUM_CLASSES,
        keys=tuple(map(str, range(size))),
        view_seeds=torch.arange(size),
    )


def smooth(labels, smoothing):
    targets = torch.full((len(labels), NUM_CLASSES), smoothing / NUM_CLASSES)
    targets[torch.arange(len(labels)), labels] += 1 - smoothing
    return targets


@pytest.mark.parametrize("size", [1, 4, 5])
@pytest.mark.parametrize("options", [MIXUP, CUTMIX, BOTH])
def test_partner_is_the_reversed_batch(size, options):
    for seed in range(6):
        batch = make_batch(size)
        before = batch.images.clone()
        mixed = mix(batch, options, NUM_CLASSES, seed)
        assert torch.equal(batch.images, before)
        assert mixed.images.shape == before.shape and mixed.teacher_images is mixed.images
        own = smooth(batch.labels, options.label_smoothing)
        # One lambda for the batch, read off the first pair and checked against all the others.
        first = (own[0] - own.flip(0)[0]).abs().argmax()
        gap = own[0, first] - own.flip(0)[0, first]
        lam = (mixed.labels[0, first] - own.flip(0)[0, first]) / gap if gap else torch.tensor(1.0)
        torch.testing.assert_close(mixed.labels, lam * own + (1 - lam) * own.flip(0))
        partner = before.flip(0)
        if options is MIXUP and gap:
            torch.testing.assert_close(mixed.images, lam * before + (1 - lam) * partner)
        if options is CUTMIX and gap:
            is_own = mixed.images == before
            assert (is_own | (mixed.images == partner)).all()
            # lambda is corrected to the box that was really cut.
            assert is_own[0, 0].float().mean() == pytest.approx(lam.item(), abs=1e-5)


def test_targets_are_distributions():
    targets = mix(make_batch(6), BOTH, NUM_CLASSES, 0).labels
    assert targets.shape == (6, NUM_CLASSES) and targets.dtype == torch.float32
    torch.testing.assert_close(targets.sum(1), torch.ones(6))
    assert targets.min() >= 0


def test_pure_function_of_the_seed_that_leaves_the_global_generators():
    batch = make_batch(4)
    state = np.random.get_state()[1].copy(), random.getstate()
    first = mix(batch, BOTH, NUM_CLASSES, 2**62 + 1)
    np.random.random()
    again = mix(batch, BOTH, NUM_CLASSES, 2**62 + 1)
    other = mix(batch, BOTH, NUM_CLASSES, 2**62 + 2)
    assert torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, other.images)
    np.random.set_state(("MT19937", state[0], 624))
    assert random.getstate() == state[1]


def test_the_teacher_sees_the_same_mix():
    batch = make_batch(5, teacher=True)
    mixed = mix(batch, BOTH, NUM_CLASSES, 3)
    torch.testing.assert_close(mixed.teacher_images, mixed.images / 2)


def test_without_mixing_targets_are_only_smoothed():
    batch = make_batch(3)
    mixed = mix(batch, MixOptions(label_smoothing=0.1), NUM_CLASSES, 0)
    assert mixed.images is batch.images
    torch.testing.assert_close(mixed.labels, smooth(batch.labels, 0.1))
    torch.testing.assert_close(
        mix(batch, MixOptions(), NUM_CLASSES, 0).labels, smooth(batch.labels, 0.0)
    )


def test_mix_prob_leaves_some_batches():
    batch = make_batch(4)
    options = MixOptions(mixup_alpha=0.8, mix_prob=0.5)
    same = [
        torch.equal(mix(batch, options, NUM_CLASSES, s).images, batch.images) for s in range(60)
    ]
    assert 15 < sum(same) < 45  # four standard deviations


def test_unlabelled_data_is_refused():
    batch = Batch(torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4), None, ("a", "b"), torch.arange(2))
    with pytest.raises(UserError, match="need labels"):
        mix(batch, MIXUP, NUM_CLASSES, 0)
