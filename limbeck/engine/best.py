"""The best weights of a run by its probes, for a training that stops when it gets no better."""

from typing import Any

from torch import Tensor, nn


class Best:
    """Keeps the weights (averaged where there is an average) of the best probe by ``measure``.

    ``patience``: after so many probes without a better one the training is over; None keeps
    nothing. A score is better if it is higher; one that a probe does not give counts as worse.
    """

    def __init__(self, measure: str, patience: int | None) -> None:
        self.measure, self.patience = measure, patience
        self.scores: dict[str, float] = {}
        self.weights: dict[str, Tensor] = {}
        self.step, self.num_worse = 0, 0

    def add(self, module: nn.Module, step: int, scores: dict[str, float]) -> None:
        """A probe of the module as it is now."""
        if self.patience is None:
            return
        least = float("-inf")
        if scores.get(self.measure, least) > self.scores.get(self.measure, least):
            state = module.state_dict()
            self.weights = {name: value.detach().cpu().clone() for name, value in state.items()}
            self.scores, self.step, self.num_worse = dict(scores), step, 0
        else:
            self.num_worse += 1

    @property
    def is_over(self) -> bool:
        """Whether the training is."""
        return self.patience is not None and self.num_worse >= self.patience

    def copy_to(self, module: nn.Module) -> None:
        """The module with the best weights; unchanged without any."""
        if self.weights:
            module.load_state_dict(self.weights)

    def sentence(self) -> str:
        """For people, at the end."""
        best = self.scores.get(self.measure, float("nan"))
        over = f"No better {self.measure} in {self.num_worse} probes: stopped. " * self.is_over
        return f"{over}The weights of step {self.step:,} are kept ({self.measure} {best:.4g})."

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` goes on from."""
        names = ("scores", "weights", "step", "num_worse")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        for name, value in state.items():
            setattr(self, name, value)
