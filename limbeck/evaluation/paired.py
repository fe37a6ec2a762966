"""Two students on the same images: is the difference more than the luck of the images?"""

from collections.abc import Sequence
from math import comb

import torch
from torch import Tensor

from limbeck.evaluation.scores import Score

NUM_DRAWS = 2000
LEVEL = 0.05


def mcnemar(only_first: int, only_second: int) -> float:
    """McNemar's exact test: the two-sided p of so many images that only one of two gets right.

    Were both as good, each such image would be a fair coin (Psychometrika 1947; the binomial
    instead of its approximation). Images that both or neither get right say nothing.
    """
    count = only_first + only_second
    least = min(only_first, only_second)
    tail = sum(comb(count, k) for k in range(least + 1))
    return min(1.0, 2 * tail / 2**count)


def bootstrap_interval(
    differences: Tensor, num_draws: int = NUM_DRAWS, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the mean of differences (n,), by images drawn with replacement (percentiles
    of ``num_draws`` means; Efron and Tibshirani 1993, chapter 13)."""
    values = differences.double().cpu()
    generator = torch.Generator().manual_seed(seed)
    count = len(values)
    rows = max(1, 10**7 // count)  # bounds the memory of a turn
    means = torch.cat([
        values[torch.randint(count, (min(rows, num_draws - start), count), generator=generator)]
        .mean(dim=1)
        for start in range(0, num_draws, rows)
    ])  # fmt: skip
    low, high = torch.quantile(means, means.new_tensor([LEVEL / 2, 1 - LEVEL / 2])).tolist()
    return low, high


def statement(student: Sequence[Score], baseline: Sequence[Score]) -> str:
    """What the same test images say of two sides, in words; one score per run, of one probe.

    Of single runs McNemar's test, of several the bootstrap of the mean over runs.
    """
    sides = [
        torch.stack([score.per_image for score in side]).double().mean(dim=0)
        for side in (student, baseline)
    ]
    count = len(sides[0])
    is_single = all(((side == 0) | (side == 1)).all() for side in sides)
    if is_single:
        alone = [int((sides[i] > sides[1 - i]).sum()) for i in (0, 1)]
        p = mcnemar(*alone)
        says = "so the images alone hardly explain it" if p < LEVEL else "which may be luck"
        return (
            f"Of {count:,} test images {alone[0]:,} are right with the student only and "
            f"{alone[1]:,} with the baseline only: p = {_probability(p)} (McNemar), {says}."
        )
    low, high = (100 * limit for limit in bootstrap_interval(sides[0] - sides[1]))
    says = "which leaves out 0" if low > 0 or high < 0 else "which includes 0"
    return (
        f"Drawing {count:,} test images again and again, the mean difference of these runs is "
        f"{low:+.1f} to {high:+.1f} points in 95 % (paired bootstrap), {says}."
    )


def _probability(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-4 else "under 0.0001"
