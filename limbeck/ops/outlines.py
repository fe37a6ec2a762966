"""Outlines as COCO's tools draw them, by faster-coco-eval."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from limbeck.errors import require_extra


def coco_tools() -> Any:
    """faster-coco-eval; raises UserError where it is not installed."""
    try:
        import faster_coco_eval
    except ImportError as error:
        raise require_extra("faster-coco-eval", "detect", "Boxes and masks as COCO's") from error
    return faster_coco_eval


def draw_in_box(outlines: Sequence[np.ndarray], box: Sequence[float], side: int) -> np.ndarray:
    """Outlines (n, 2), x and y, on a grid laid over a box of the same plane: bool (side, side).

    The targets of Mask R-CNN where an object is stated by outlines (arXiv 1703.06870).
    """
    coco_tools()
    from faster_coco_eval.core import mask as tools

    left, top, right, bottom = box
    factors = np.array([side / max(right - left, 0.1), side / max(bottom - top, 0.1)])
    moved = [((each - (left, top)) * factors).ravel().tolist() for each in outlines]
    drawn: np.ndarray = tools.decode(tools.merge(tools.frPyObjects(moved, side, side)))
    return drawn.astype(bool)
