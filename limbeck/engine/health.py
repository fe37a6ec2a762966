"""Is a run learning? What a method knows of its loss, and the watch over it."""

from dataclasses import dataclass


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
