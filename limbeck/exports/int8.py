"""Which layers stay higher in an int8 file, found in few attempts."""

from collections.abc import Callable, Sequence

MOST_KEPT = 0.5
"""Part of the layers that may stay higher; with more of them int8 is no longer faster."""


def fewest_kept(
    ranked: Sequence[str], passes: Callable[[Sequence[str]], bool]
) -> tuple[str, ...] | None:
    """The shortest head of the ranking that passes if it stays higher, None if not even the most.

    ``passes`` is asked about log2 of the layers' number times: none, the most, then by halves.
    """
    if passes(()):
        return ()
    most = max(1, int(MOST_KEPT * len(ranked)))
    if not passes(ranked[:most]):
        return None
    low, high = 0, most  # low fails, high passes
    while high - low > 1:
        middle = (low + high) // 2
        if passes(ranked[:middle]):
            high = middle
        else:
            low = middle
    return tuple(ranked[:high])
