"""What a finished student carries about its making."""

import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from limbeck import __version__
from limbeck.documents import read_json
from limbeck.models.encoder import EncoderFacts
from limbeck.models.finished import RECORD_FILE
from limbeck.models.licences import Ancestor, ancestors


def versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    names = ("torch", "torchvision", "timm", "numpy", "pillow")
    own = {"python": platform.python_version(), "limbeck": __version__}
    return own | {name: version(name) for name in names}


class _Scored(TypedDict):
    scores: dict[str, float]


def scores_of(folder: Path) -> dict[str, float]:
    """The scores with which a run ended; raises UserError for a damaged record of its student."""
    said: _Scored = read_json(folder / RECORD_FILE, _Scored)
    return said["scores"]


def line_of(start: EncoderFacts, teacher: EncoderFacts | None) -> list[Ancestor]:
    """The weights from elsewhere that a run begins with, or that teach it."""
    taught = [] if teacher is None else ancestors(teacher.origin, "teacher")
    return ancestors(start.origin) + taught


def record(
    *,
    verb: str,
    config: dict[str, Any],
    start: EncoderFacts,
    teacher: EncoderFacts | None,
    data: dict[str, Any],
    extra: dict[str, Any],
) -> dict[str, Any]:
    """The part of student.json that says how the student was made."""
    return {
        "made_by": f"limbeck {verb}",
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "teacher": teacher
        and {
            **teacher.origin,
            "architecture": teacher.architecture,
            "num_heads": list(teacher.num_heads),
        },
        "lineage": [each.plain() for each in line_of(start, teacher)],
        "data": data,
        "config": config,
        "versions": versions(),
        **extra,
    }
