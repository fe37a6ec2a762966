"""The model card of a finished student: what it is, how it was made, whose weights went into it."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from limbeck.documents import to_json
from limbeck.evaluation.report import table
from limbeck.models.encoder import EncoderFacts
from limbeck.models.licences import Ancestor

TASKS = {"classifier": "image-classification", "backbone": "image-feature-extraction"}
TASKS |= {"segmenter": "image-segmentation", "detector": "object-detection"}
MOST_CLASSES = 50


def kind_of(facts: EncoderFacts) -> str:
    """What a network is, in a word: a key of ``TASKS``."""
    kind = str(facts.architecture["kind"])
    return kind if kind in TASKS else "classifier" if facts.num_classes else "backbone"


def without_places(value: Any) -> Any:
    """Plain data in which a path of this machine is but its last part: where files lie, and how the
    user is called, is nobody's business."""
    if isinstance(value, Mapping):
        return {key: without_places(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(each) for each in value]
    is_path = isinstance(value, str) and (
        value.startswith(("/", "~", "./", "../", "\\\\")) or value[1:3] in (":\\", ":/")
    )
    if not is_path:
        return value
    return (PureWindowsPath(value) if "\\" in value else PurePosixPath(value)).name


def card(
    name: str,
    facts: EncoderFacts,
    record: Mapping[str, Any],
    line: Sequence[Ancestor],
    *,
    num_parameters: int,
    licence: str | None,
    is_timm: bool,
) -> str:
    """The README.md: a head that the hub reads, and Markdown for people.

    ``record`` is that of the student without places, ``line`` the weights from elsewhere.
    """
    kind = kind_of(facts)
    head = {
        "license": licence, "library_name": "timm" if is_timm else "limbeck",
        "pipeline_tag": TASKS[kind], "tags": ["limbeck", "distillation"],
    }  # fmt: skip
    repository = PurePosixPath(name)
    parts = [
        "---\n" + "".join(f"{key}: {to_json(v).strip()}\n" for key, v in head.items() if v) + "---",
        f"# {repository.name}",
        _summary(kind, facts, record, num_parameters),
        "## How to use it\n\n" + _use(name, is_timm),
        "## How it was made\n\n" + _making(record),
        "## Whose weights went into it\n\n" + _lineage(line),
    ]
    if scores := record.get("scores"):
        rows = [{"score": key, "value": f"{value:.4g}"} for key, value in scores.items()]
        parts.append(
            "## Scores\n\nThose with which its training ended, of images that it did not learn "
            f"from. They say little of other images.\n\n{table(rows)}"
        )
    classes = facts.origin.get("classes") or ()
    if classes and len(classes) <= MOST_CLASSES:
        parts.append("## Classes\n\n" + ", ".join(map(str, classes)))
    return "\n\n".join(parts) + "\n"


def _summary(kind: str, facts: EncoderFacts, record: Mapping[str, Any], num_parameters: int) -> str:
    size = " x ".join(map(str, facts.img_size))
    knows = f" of {facts.num_classes} classes" if facts.num_classes else ""
    return (
        f"A {kind}{knows}: {facts.architecture['name']}, {num_parameters / 1e6:.2f} M parameters, "
        f"images of {size} pixels. Made by `{record.get('made_by', 'limbeck')}` (Limbeck)."
    )


def _use(name: str, is_timm: bool) -> str:
    if is_timm:
        lines = [
            "```python",
            "import timm",
            "",
            f'model = timm.create_model("hf-hub:{name}", pretrained=True).eval()',
            "config = timm.data.resolve_model_data_config(model)",
            "show = timm.data.create_transform(**config, is_training=False)",
            "```",
            "",
            f"Or as a start or a teacher: `limbeck finetune --student hf:{name}`.",
        ]
        return "\n".join(lines)
    return (
        f"```\nhf download {name} --local-dir student\n```\n\n```python\nimport limbeck\n\n"
        'model = limbeck.load("student")\n```'
    )


def _making(record: Mapping[str, Any]) -> str:
    config, data = record.get("config", {}), record.get("data", {})
    has_method = record.get("teacher") or record.get("made_by") == "limbeck distill"
    told = {
        "command": record.get("made_by"),
        "method": config.get("method") if has_method else None,
        "steps": record.get("steps"),
        "training images": data.get("num_train"),
        "held-out images": data.get("num_holdout"),
        "fingerprint of the images": data.get("fingerprint"),
        "finished": record.get("made_at"),
        "versions": ", ".join(f"{k} {v}" for k, v in record.get("versions", {}).items()),
    }
    rows = [{"what": key, "value": value} for key, value in told.items() if value is not None]
    return table([row | {"value": str(row["value"])} for row in rows])


def _lineage(line: Sequence[Ancestor]) -> str:
    if not line:
        return "Nobody's: it began with drawn weights, and so did all who taught it."
    rows = [
        {
            "role": each.role,
            "source": without_places(each.source),
            "licence": each.licence or "not known",
            "terms": each.terms,
            "weights (SHA-256)": (each.weight_hash or "")[:16],
        }
        for each in line
    ]
    return f"{table(rows)}\n\nThis is lineage, not legal advice."
