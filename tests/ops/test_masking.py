"""Masks follow from view seeds alone."""

import pytest
import torch

from limbeck.ops.masking import (
    counter_uniform,
    ids_masked,
    is_masked,
    random_ids_keep,
    split_units,
)


def splitmix(seed, counter):
    """SplitMix64 in Python's integers, independent of torch's wrapping."""
    mask = (1 << 64) - 1
    z = (seed + counter * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53


def test_counter_uniform_is_splitmix64():
    seeds = [0, 1, 2**62 + 12345]
    drawn = counter_uniform(torch.tensor(seeds), 5)
    expected = [[splitmix(seed, counter) for counter in range(1, 6)] for seed in seeds]
    torch.testing.assert_close(drawn, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=0)


def test_counter_uniform_looks_uniform():
    drawn = counter_uniform(torch.arange(200), 500)
    assert abs(drawn.mean().item() - 0.5) < 0.005  # 100,000 draws: standard error 0.0009
    assert abs(drawn.var().item() - 1 / 12) < 0.002
    assert drawn.min() >= 0 and drawn.max() < 1


def test_a_sample_s_mask_does_not_depend_on_its_batch():
    seeds = torch.tensor([5, 6, 7, 8])
    together = random_ids_keep(seeds, 196, 0.75)
    alone = torch.cat([random_ids_keep(seed[None], 196, 0.75) for seed in seeds])
    assert together.shape == (4, 49)
    assert torch.equal(together, alone)
    assert not torch.equal(together[0], together[1])


def test_is_masked_is_the_complement_of_kept():
    ids_keep = random_ids_keep(torch.arange(3), 16, 0.75)
    hidden = is_masked(ids_keep, 16)
    assert hidden.sum(1).tolist() == [12, 12, 12]
    assert not hidden.gather(1, ids_keep).any()


def test_ids_masked_are_the_others():
    assert ids_masked(torch.tensor([[3, 0], [1, 2]]), 4).tolist() == [[1, 2], [0, 3]]


def test_units_are_split_in_rows():
    # Units 1 and 2 of 2 x 2 units, each of 2 x 2 patches, on a grid of 4 x 4.
    assert split_units(torch.tensor([[1, 2]]), (2, 2), 2).tolist() == [
        [2, 3, 6, 7, 8, 9, 12, 13]
    ]  # fmt: skip
    assert split_units(torch.tensor([[5, 0]]), (2, 3), 1).tolist() == [[5, 0]]


@pytest.mark.parametrize("is_reversed", [False, True])
def test_golden_masks(is_reversed):
    shuffled = torch.arange(196).flip(0) if is_reversed else torch.arange(196)
    kept = shuffled[None, :49]
    hidden = torch.arange(147) if is_reversed else torch.arange(49, 196)
    assert is_masked(kept, 196)[0].nonzero().flatten().tolist() == hidden.tolist()
    assert ids_masked(kept, 196)[0].tolist() == hidden.tolist()
    # The encoder computes them in that order: 50 tokens with the CLS token.
    assert kept[0, [0, -1]].tolist() == ([195, 147] if is_reversed else [0, 48])


@pytest.mark.parametrize(
    ("num_patches", "mask_ratio", "kept"), [(196, 0.75, 49), (49, 0.4, 29), (49, 0.6, 19)]
)
def test_golden_counts(num_patches, mask_ratio, kept):
    assert random_ids_keep(torch.arange(2), num_patches, mask_ratio).shape == (2, kept)


@pytest.mark.parametrize(
    ("noise", "first_kept", "last_kept", "restore"),
    [
        (torch.arange(196), [0, 1, 2, 3, 4], 48, list(range(196))),
        (196 - torch.arange(196), [195, 194, 193, 192, 191], 147, list(range(195, -1, -1))),
        (37 * torch.arange(196) % 196, [0, 53, 106, 159, 16], 192, [0, 37, 74, 111]),
    ],
    ids=["ascending", "descending", "scattered"],
)
def test_golden_masks_of_noise(noise, first_kept, last_kept, restore, monkeypatch):
    """The 49 smallest, in the order of the noise; where each patch comes in that order."""
    monkeypatch.setattr("limbeck.ops.masking.counter_uniform", lambda seeds, n: noise[None] / 196)
    kept = random_ids_keep(torch.zeros(1, dtype=torch.int64), 196, 0.75)[0]
    assert kept.shape == (49,)
    assert kept[:5].tolist() == first_kept and kept[-1] == last_kept
    everything = random_ids_keep(torch.zeros(1, dtype=torch.int64), 196, 0.0)[0]
    assert everything[:49].equal(kept)
    order = everything.argsort()
    assert order[: len(restore)].tolist() == restore
    assert everything[order].equal(torch.arange(196))
    hidden = is_masked(kept[None], 196)[0]
    assert hidden.equal(order >= 49)
    if first_kept[1] == 53:
        assert kept.sum() == 4704
        assert hidden[:8].int().tolist() == [0, 0, 1, 1, 1, 1, 0, 1]
