"""``limbeck cost``: what networks cost, counted, and measured on this machine.

Imports of torch are inside the functions: the config and its checks must answer without it.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from limbeck.config import BatchSize, NumThreads, Repeats, Side, options
from limbeck.documents import write_json
from limbeck.errors import UserError
from limbeck.exports.formats import has_packages
from limbeck.exports.passes import RUNTIMES, RuntimeName
from limbeck.files import MIB, write_text
from limbeck.models.options import StudentOptions
from limbeck.recipes.run import checks

if TYPE_CHECKING:
    from limbeck.models.encoder import Encoder

log = logging.getLogger("limbeck")

SUFFIXES = (".json", ".csv")
SCORES = ("top1", "miou", "linear_top1", "knn_top1", "neighbours")
"""What a run may know of itself; of several the first that most of them have is drawn."""


@options
class CostConfig:
    """Say what networks cost: parameters, multiplications by part, memory; and, measured in each
    runtime on this machine, milliseconds for one image and images per second in batches."""

    models: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names of students (vit_tiny, tiny_vit_5m:depths=2-2-4-2, timm:NAME), weights files or
    runs."""
    out: Path | None = None
    """A file for the table, .json or .csv; the Pareto picture is put beside it (.png and .svg)."""
    overwrite: bool = False
    """Replace the files of that name."""
    img_size: Side | None = None
    """Image side in pixels; each network's own if not given."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """That is measured, as of limbeck export."""
    runtimes: tuple[RuntimeName, ...] = ()
    """torch (PyTorch), onnx (ONNX Runtime), openvino; all that are installed if not given."""
    threads: NumThreads = 1
    batch_size: BatchSize = 8
    """Images at once, for images per second."""
    num_turns: Repeats = 15
    """A latency is the median of so many turns, in which the runtimes alternate; of batches a
    fifth of them will do."""
    measure: bool = True
    """Or only count."""


@dataclass(frozen=True)
class Costs:
    """A row for each network, as JSON-ready data; notes, and what could not be read."""

    rows: list[dict[str, Any]]
    how: str
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def check(config: CostConfig) -> None:
    """All that can be wrong without opening a network; raises UserError."""
    checks.check_one_process("cost is one process, and measures one network after the other")
    if not config.models:
        raise UserError("No network is named; run: limbeck cost vit_tiny tiny_vit_5m RUN ...")
    if not config.measure:
        names = ["runtimes", "threads", "batch_size", "num_turns", "precision"]
        checks.check_unset(config, names, "with --no-measure", "--")
    if config.out is None:
        checks.check_unset(config, ["overwrite"], "without --out", "--")
    elif config.out.suffix not in SUFFIXES:
        raise UserError(f"--out {config.out}: let its name end in {' or '.join(SUFFIXES)}.")
    elif not config.out.parent.is_dir():
        raise UserError(f"There is no folder {config.out.parent} to write in; make it first.")
    elif config.out.exists() and not config.overwrite:
        raise UserError(f"{config.out} exists; choose another name, or replace it: --overwrite.")


def cost(config: CostConfig) -> Costs:
    """Count and measure each; what can't be read is told, and the others go on.

    Raises UserError for bad input, and where nothing can be read.
    """
    check(config)
    from limbeck.evaluation.latency import busy_note, describe_machine, threads
    from limbeck.recipes.look.measure import short_names

    names, notes = _runtimes(config)
    notes += filter(None, [busy_note() if names else ""])
    rows: list[dict[str, Any]] = []
    problems: list[UserError] = []
    for name in dict.fromkeys(config.models):
        try:
            encoder = _open(name, config.img_size)
            with threads(config.threads if config.measure else None):
                rows.append(_row(config, name, encoder, names, notes))
            log.info("%s: done.", name)
        except UserError as error:
            problems.append(error)
    if not rows:
        raise problems[0] if len(problems) == 1 else UserError(" ".join(map(str, problems)))
    for row, short in zip(rows, short_names([row["model"] for row in rows]), strict=True):
        row["name"] = short
    rows.sort(key=lambda row: (min(row["latency_ms"].values(), default=inf), row["macs"]))
    count = f"{config.threads} thread{'s' if config.threads > 1 else ''}"
    how = (
        f"Measured on {describe_machine()}: {config.precision}, {count}; ms for one image, in "
        f"brackets images per second in batches of {config.batch_size}; medians."
    )
    found = Costs(rows, how if names else "", list(dict.fromkeys(notes)), list(map(str, problems)))
    if config.out is not None:
        _write(found, config.out)
    return found


def _runtimes(config: CostConfig) -> tuple[list[RuntimeName], list[str]]:
    """Those to measure in, and a note for those whose packages are missing."""
    asked = dict.fromkeys(config.runtimes or RUNTIMES) if config.measure else {}
    notes = [
        f"{RUNTIMES[name]} is not installed, so it is left out; run: pip install 'limbeck[export]'."
        for name in asked
        if not has_packages(name)
    ]
    return [name for name in asked if has_packages(name)], notes


def _open(source: str, img_size: int | None) -> Encoder:
    """Of a name with fresh weights, which cost the same: nothing is downloaded for it."""
    from limbeck.models.build import build_student
    from limbeck.models.origins.load import load_encoder

    checks.check_start(source)
    if checks.is_bare_name(source):
        asked = StudentOptions(name=source)
        return build_student(replace(asked, img_size=img_size or asked.img_size), seed=0).eval()
    fresh = {"pretrained": False} if source.startswith("timm:") else {}
    return load_encoder(source, img_size=img_size, **fresh)


def _row(
    config: CostConfig,
    name: str,
    encoder: Encoder,
    runtimes: Sequence[RuntimeName],
    notes: list[str],
) -> dict[str, Any]:
    from limbeck.evaluation.cost import activation_bytes, macs_by_part
    from limbeck.evaluation.latency import interleaved
    from limbeck.exports.passes import open_passes
    from limbeck.records import LOGIT_KINDS, Tap

    facts = encoder.facts
    taps = tuple(Tap(kind) for kind in LOGIT_KINDS if kind in encoder.offered_taps())
    macs = macs_by_part(encoder, taps)
    opened = {}
    for runtime in runtimes:
        try:
            opened[runtime] = open_passes(encoder, runtime, config.threads, config.precision)
        except UserError as error:
            notes.append(f"{name}: not in {RUNTIMES[runtime]}: {error}")
    single, many = (
        interleaved([of_batch(size) for of_batch in opened.values()], turns)
        for size, turns in ((1, config.num_turns), (config.batch_size, -(-config.num_turns // 5)))
    )
    known = facts.origin.get("scores")
    known = known if isinstance(known, dict) else {}
    return {
        "model": name,
        "img_size": list(facts.img_size),
        "parameters": sum(each.numel() for each in encoder.parameters()),
        "macs": sum(macs.values()),
        "macs_by_part": macs,
        "activation_mib": activation_bytes(encoder, taps) / MIB,
        "latency_ms": {each: 1e3 * s for each, s in zip(opened, single, strict=True)},
        "images_per_second": {
            each: config.batch_size / s for each, s in zip(opened, many, strict=True)
        },
        "scores": {each: known[each] for each in SCORES if isinstance(known.get(each), float)},
    }


def _write(found: Costs, out: Path) -> None:
    """The table, and the picture where there is something to compare."""
    if out.suffix == ".json":
        write_json(out, {"how": found.how, "rows": found.rows, "problems": found.problems})
    else:
        rows = [dict(_flat(row)) for row in found.rows]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
        write_text(out, text.getvalue())
    found.files.append(out)
    if len(found.rows) > 1:
        try:
            from limbeck.evaluation.pareto import draw_costs

            found.files.extend(draw_costs(out, found.rows, SCORES, RUNTIMES))
        except UserError as error:
            found.notes.append(f"No picture: {error}")


def _flat(row: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in row.items():
        if isinstance(value, dict):
            yield from ((f"{key}: {name}", each) for name, each in value.items())
        else:
            yield key, "x".join(map(str, value)) if isinstance(value, list) else value


def report(found: Costs) -> str:
    """Tables for the command line, the fastest first: counted, measured, and MACs by part."""
    from limbeck.evaluation.cost import PARTS
    from limbeck.evaluation.report import TERMINAL, table

    rows = found.rows
    scores = [each for each in SCORES if any(each in row["scores"] for row in rows)]
    counted, measured, parts = [], [], []
    for row in rows:
        name = row["name"]
        counted.append({
            "": name,
            "px": "x".join(map(str, dict.fromkeys(row["img_size"]))),
            "M params": _number(row["parameters"], 1e-6),
            "GMACs": _number(row["macs"], 1e-9),
            "MiB": _number(row["activation_mib"]),
            **{f"{each}, %": _number(row["scores"].get(each), 100) for each in scores},
        })  # fmt: skip
        speeds = row["images_per_second"]
        measured.append({"": name} | {
            RUNTIMES[each]: f"{_number(ms):g} ({_number(speeds[each]):g})"
            for each, ms in row["latency_ms"].items()
        })  # fmt: skip
        macs = row["macs_by_part"]
        parts.append({"% of MACs": name} | {
            part: round(100 * macs[part] / row["macs"]) for part in PARTS if macs[part]
        })  # fmt: skip
    columns = ["% of MACs", *(part for part in PARTS if any(part in each for each in parts))]
    lines = [table(counted, width=TERMINAL), ""]
    if found.how:
        lines += [table(measured, width=TERMINAL), ""]
    lines += [table(parts, columns, TERMINAL), ""]
    lines += ["MiB are of the tensors alive at once as PyTorch infers an image, weights aside."]
    lines += filter(None, [found.how])
    lines += [f"Wrote {', '.join(map(str, found.files))}."] if found.files else []
    lines += found.notes
    return "\n".join(lines + [f"PROBLEM: {each}" for each in found.problems])


def _number(value: float | None, scale: float = 1.0) -> float | None:
    """Three digits."""
    return None if value is None else float(f"{scale * value:.3g}")
