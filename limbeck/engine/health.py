"""Is a run learning? What a method knows of its loss, and the watch that the loop keeps over it."""

import math
from dataclasses import dataclass
from typing import Any

NUM_WINDOWS = 20  # of a run: short enough to tell early, long enough to smooth the steps' noise
MIN_STEPS = 10  # of a window
NUM_COMPARED = 4  # windows, a fifth of the run, in which a plateau's loss hardly falls
MIN_FALL = 0.03
TINY = 1e-12  # of targets that are all the same there is nothing to predict


@dataclass(frozen=True)
class Health:
    """What a method whose losses state ``at_zero`` knows of healthy runs.

    Shares of ``at_zero``: a loss that levels off above ``healthy_share`` is a plateau, and
    ``expected_share`` is about where a long healthy run ends. ``plateau_causes``: what most likely
    is wrong, the likeliest first.
    """

    healthy_share: float
    expected_share: float
    plateau_causes: tuple[str, ...]


class Watch:
    """Says once that a loss has levelled off far above where a healthy run's would.

    The run's steps are cut into windows, a twentieth of it each, of 10 steps at least. A plateau is
    a window whose mean loss is above ``healthy_share`` of the mean ``at_zero`` and has fallen by
    less than 3 % in the last four windows. The last window is judged too, fallen or not; none is
    before the fifth after the warm-up, so that a very short run never is. Without ``health``, or
    where the losses have no "at_zero", it is silent. Its state is part of the checkpoint.
    """

    def __init__(self, health: Health | None, total_steps: int, warmup_steps: int = 0) -> None:
        self.health = health
        self.total_steps = total_steps
        self.window = max(MIN_STEPS, math.ceil(total_steps / NUM_WINDOWS))
        self.first_window = math.ceil(warmup_steps / self.window)
        self.sums = [0.0, 0.0]  # of loss and at_zero, in the window under way
        self.shares: list[float] = []
        self.plateau_step: int | None = None

    def add(self, step: int, losses: dict[str, float]) -> str | None:
        """The losses of the ``step``-th step, from 1; returns what there is to say, if anything."""
        if self.health is None or "at_zero" not in losses:
            return None
        self.sums = [self.sums[0] + losses["total"], self.sums[1] + losses["at_zero"]]
        is_last = step == self.total_steps
        is_window = step % self.window == 0
        if is_window or (is_last and not self.shares):  # a few steps at the end are no window
            self.shares.append(self.sums[0] / max(self.sums[1], TINY))
            self.sums = [0.0, 0.0]
        if step == 1:
            zero, share = losses["at_zero"], self.health.expected_share
            return (
                f"A student that predicts nothing has a loss of {zero:.3g}; a healthy run soon "
                f"falls below it, and a long one ends near {share * zero:.2g}."
            )
        if not self._is_high():
            return None
        if is_last:
            return self._warn("ends at")
        is_level = self.shares[-1] > (1 - MIN_FALL) * self.shares[-1 - NUM_COMPARED]
        if is_window and self.plateau_step is None and is_level:
            self.plateau_step = step
            return self._warn(f"has hardly fallen for {NUM_COMPARED * self.window} steps and is")
        return None

    def record(self) -> dict[str, Any]:
        """The loss as a share of ``at_zero`` in the last window, and the step of a plateau.

        Of a run that is shorter than a window: in all of it.
        """
        if not self.shares:
            return {}
        return {"loss_share": self.shares[-1], "plateau_step": self.plateau_step}

    def _is_high(self) -> bool:
        assert self.health is not None
        is_judged = len(self.shares) > self.first_window + NUM_COMPARED
        return is_judged and self.shares[-1] > self.health.healthy_share

    def _warn(self, what: str) -> str:
        assert self.health is not None
        return (
            f"WARNING: the loss {what} {self.shares[-1]:.0%} of what predicting nothing gives; a "
            f"healthy run gets below {self.health.healthy_share:.0%}. Likely causes: "
            f"{'; '.join(self.health.plateau_causes)}."
        )

    def state_dict(self) -> dict[str, Any]:
        """What a continued run needs, plain data."""
        return {"sums": self.sums, "shares": self.shares, "plateau_step": self.plateau_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.sums, self.shares = list(state["sums"]), list(state["shares"])
        self.plateau_step = state["plateau_step"]
