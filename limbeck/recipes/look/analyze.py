"""``limbeck analyze``: why is a network good or bad? Its layers, its heads, and what they know.

The analyses of MAE-Lite (arXiv 2205.14443) on your own images: similarity of layers, attention
distance and entropy, a probe on every block, and fine-tuning with only the first blocks kept.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from limbeck.config import from_plain, read_preset, read_values, to_plain
from limbeck.documents import as_read, fit, read_json, write_json
from limbeck.errors import UserError
from limbeck.files import write_text
from limbeck.recipes.look.options import AnalyzeConfig
from limbeck.recipes.run import checks
from limbeck.recipes.run.options import FinetuneConfig
from limbeck.recipes.train.finetune import check as check_finetune
from limbeck.recipes.train.finetune import with_labels

if TYPE_CHECKING:
    from limbeck.engine.distributed import Ranks
    from limbeck.recipes.look.measure import Subject
    from limbeck.recipes.run.images import Images

log = logging.getLogger("limbeck")

DATA_FILE, REPORT_FILE = "analysis.json", "analysis.md"
MOST_PAIRS = 15  # of five networks; more heat maps than that nobody reads
SET_HERE = ("student", "out", "seed", "overwrite", "keep_blocks", "data", "train.device")
"""Options of a fine-tuning that the analysis sets itself."""
MAY_CHANGE = (
    *("out", "overwrite", "device", "parts"),
    *("keep_blocks", "label_fractions", "num_seeds", "finetune_preset", "finetune_options"),
)
"""Options of which no measured number hangs, or whose numbers lie in runs of their own."""

_MORE = ConfigDict(extra="allow", strict=True)
_Row = list[float | None]
_Heads = Annotated[list[float], Field(min_length=1)]


class _Pair(TypedDict):
    __pydantic_config__ = _MORE  # type: ignore[misc]
    first: str
    second: str
    cka: Annotated[list[Annotated[_Row, Field(min_length=1)]], Field(min_length=1)]


class _Attention(TypedDict):
    __pydantic_config__ = _MORE  # type: ignore[misc]
    distance: list[_Heads | None]
    entropy: list[_Heads | None]
    uniform_distance: _Row
    uniform_entropy: _Row


class _Probe(TypedDict):
    __pydantic_config__ = _MORE  # type: ignore[misc]
    mean: float
    low: float
    high: float
    num_test: int


class _Probes(TypedDict):
    __pydantic_config__ = _MORE  # type: ignore[misc]
    knn_top1: Annotated[list[_Probe], Field(min_length=1)]
    linear_top1: Annotated[list[_Probe], Field(min_length=1)]


class _Tuned(TypedDict):
    __pydantic_config__ = _MORE  # type: ignore[misc]
    model: str
    keep_blocks: int
    label_fraction: float
    seed: int
    top1: float


class _Parts(TypedDict, total=False):
    __pydantic_config__ = _MORE  # type: ignore[misc]
    similarity: list[_Pair]
    attention: dict[str, _Attention]
    probing: dict[str, _Probes]
    layers: list[_Tuned]


class _Found(TypedDict):
    """What analysis.json holds, as far as it is read again; its networks and images are compared
    with those at hand."""

    __pydantic_config__ = _MORE  # type: ignore[misc]
    request: dict[str, Any]
    models: list[dict[str, Any]]
    images: dict[str, Any]
    parts: _Parts
    notes: list[str]
    precision: NotRequired[Literal["fp32", "bf16", "fp16"] | None]


@dataclass(frozen=True)
class Analysis:
    """What was found, as plain data (that of analysis.json), and the folder with the pictures.

    ``found`` has "models", "images", "parts" (by name; see docs/analysis.md), "notes" and what
    identifies them. ``pictures`` are the files that were drawn.
    """

    found: dict[str, Any]
    out: Path
    pictures: list[Path]


def check(config: AnalyzeConfig) -> None:
    """All that can be wrong without opening an image or a weights file; raises UserError."""
    checks.check_data(config.data)
    checks.check_one_process("analyze is one process, and measures one network after the other")
    checks.check_all_labels(config.data)
    if not config.runs:
        raise UserError("No network is named; run: limbeck analyze RUN_FOLDER --data FOLDER.")
    for source in (*config.runs, *filter(None, [config.reference])):
        checks.check_source(source)
    if len(set(config.runs)) < len(config.runs):
        raise UserError("A network is named twice; name each once.")
    if config.names and len(config.names) != len(config.runs):
        raise UserError(
            f"--names has {len(config.names)} names for {len(config.runs)} networks; give each one."
        )
    if len(set(config.names)) < len(config.names):
        raise UserError("Two networks have the same name; give each its own.")
    if not config.parts and not config.keep_blocks:
        raise UserError("There is nothing to do: name --parts or --keep-blocks.")
    _check_effects(config)
    if config.keep_blocks:
        for run in fine_tunings(config, "x", config.runs[0]):
            check_finetune(run)


def _check_effects(config: AnalyzeConfig) -> None:
    needed = {
        "similarity": ("reference", "pooled_similarity"),
        "attention": ("cell_px",),
        "probing": ("num_train",),
    }
    for part, names in needed.items():
        if part not in config.parts:
            checks.check_unset(config, names, f"without {part} in --parts")
    if not config.keep_blocks:
        names = ("label_fractions", "num_seeds", "finetune_preset", "finetune_options")
        checks.check_unset(config, names, "without --keep-blocks")
    for name in ("keep_blocks", "label_fractions"):
        values = getattr(config, name)
        if len(set(values)) < len(values):
            raise UserError(f"{name} has a number twice; name each once.")
    num_pairs = len(config.runs) * (len(config.runs) + 1) // 2
    if "similarity" in config.parts and not config.reference and num_pairs > MOST_PAIRS:
        raise UserError(
            f"{len(config.runs)} networks make {num_pairs} pairs; name the one to compare all with "
            "(--reference)."
        )


def analyze(config: AnalyzeConfig) -> Analysis:
    """Measure, write and draw what is not in the folder yet; raises UserError for bad input."""
    check(config)
    before = claim_out(config)
    from limbeck.engine.distributed import ranks_session
    from limbeck.recipes.run.images import open_images

    with ranks_session(config.device, to_plain(config)) as ranks:
        images = open_images(config.data)
        found, subjects = _measured(config, images, ranks, before)
        if config.keep_blocks and images.is_labelled:
            _settle_recipe(config, found, ranks, goes_on=found is before)
    if config.keep_blocks:
        found["parts"]["layers"] = _which_layers(config, images, subjects, found)
    pictures = []
    if ranks.is_main:
        from limbeck.evaluation.findings import describe

        save(config.out, found)
        pictures = draw(found, config.out)
        write_text(config.out / REPORT_FILE, describe(found) + "\n")
    return Analysis(found, config.out, pictures)


def claim_out(config: AnalyzeConfig) -> dict[str, Any]:
    """What the folder holds of this analysis already; raises UserError where it holds another."""
    from limbeck.recipes.look.evaluate import check_writable

    check_writable(config.out)
    file = config.out / DATA_FILE
    if not file.exists():
        return {}
    try:
        before: dict[str, Any] = read_json(file)
        fit(before, _Found, str(file))  # as it is written: what was measured stays to the byte
    except UserError:
        if config.overwrite:
            return {}
        raise
    if before["request"] == request_of(config):
        return before
    _refuse_other(config)
    return {}


def _refuse_other(config: AnalyzeConfig) -> None:
    if not config.overwrite:
        raise UserError(
            f"{config.out} holds another analysis (of other networks, images or options); choose "
            "another --out, or replace it with --overwrite."
        )


def request_of(config: AnalyzeConfig) -> dict[str, Any]:
    """What the numbers hang on, as plain data."""
    plain = to_plain(config)
    plain["data"] = {k: v for k, v in plain["data"].items() if k not in ("num_workers",)}
    return {name: value for name, value in plain.items() if name not in MAY_CHANGE}


def _measured(
    config: AnalyzeConfig, images: Images, ranks: Ranks, before: dict[str, Any]
) -> tuple[dict[str, Any], list[Subject]]:
    """The analysis but for fine-tunings, with the finished parts of ``before``."""
    from limbeck.recipes.look.measure import draw_images, load_subjects, measure
    from limbeck.recipes.run import lineage

    subjects = load_subjects(config)
    shown = draw_images(config, images)
    found: dict[str, Any] = {
        "request": request_of(config),
        "models": [subject.plain() for subject in subjects],
        "images": shown.plain(),
        "versions": lineage.versions(),
        "parts": {},
        "notes": [],
    }
    found = as_read(found)
    if before:
        if all(before[key] == found[key] for key in ("request", "models", "images")):
            found = before
        else:
            _refuse_other(config)
    if found is not before and ranks.is_main:
        clear(config.out)

    def keep(parts: dict[str, Any], notes: list[str]) -> None:
        found["parts"].update(parts)
        found["notes"] = list(dict.fromkeys([*found["notes"], *notes]))
        if ranks.is_main:
            save(config.out, found)

    missing = tuple(part for part in config.parts if part not in found["parts"])
    if missing:
        measure(config, missing, subjects, shown, images, ranks.device, keep)
    elif config.parts:
        log.info("What is to be measured is in %s already.", config.out / DATA_FILE)
    return found, subjects


def recipe_of(config: AnalyzeConfig) -> FinetuneConfig:
    """The fine-tuning that is repeated; raises UserError for options that it does not have."""
    values: dict[str, Any] = {}
    if config.finetune_preset is not None:
        values = read_preset(config.finetune_preset, "finetune")
    values = _merged(values, read_values(config.finetune_options, "--finetune-options"))
    for name in SET_HERE:
        if name in values or name in [f"train.{key}" for key in values.get("train", {})]:
            raise UserError(
                f"The fine-tunings' {name} is set by the analysis; use its own options (--out, "
                "--data, --keep-blocks, --label-fractions, --num-seeds, --device)."
            )
    return from_plain(FinetuneConfig, values, "--finetune-options")


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for name, value in changes.items():
        is_section = isinstance(value, dict) and isinstance(values.get(name), dict)
        merged[name] = _merged(values[name], value) if is_section else value
    return merged


def fine_tunings(config: AnalyzeConfig, name: str, source: str) -> list[FinetuneConfig]:
    """The runs that tell which of a network's layers matter: blocks x label fractions x seeds."""
    recipe = recipe_of(config)
    return [
        replace(
            recipe,
            student=source,
            out=config.out / "layers" / f"{name}_keep{count}_labels{fraction:g}_seed{seed}",
            seed=seed,
            overwrite=config.overwrite,
            keep_blocks=count,
            data=with_labels(config.data, fraction, seed),
            train=replace(recipe.train, device=config.device),
        )
        for fraction in config.label_fractions
        for count in config.keep_blocks
        for seed in range(config.num_seeds)
    ]


def _settle_recipe(
    config: AnalyzeConfig, found: dict[str, Any], ranks: Ranks, goes_on: bool
) -> None:
    """One precision for all fine-tunings, also those of a later call: kept in analysis.json."""
    from limbeck.recipes.run.precision import BEFORE_AUTO, settle, stands_for

    def recall() -> str | None:
        is_older = goes_on and (config.out / "layers").exists()
        return found.get("precision") or (BEFORE_AUTO if is_older else None)

    recipe = recipe_of(config)
    found["precision"] = stands_for(recipe, settle(recipe, ranks, recall))
    if ranks.is_main:
        save(config.out, found)


def _which_layers(
    config: AnalyzeConfig, images: Images, subjects: list[Subject], found: dict[str, Any]
) -> list[dict[str, Any]]:
    """Top-1 of every fine-tuning, each an ordinary run that can be continued."""
    from limbeck.recipes.look.measure import file_name
    from limbeck.recipes.run.lineage import scores_of
    from limbeck.recipes.run.precision import filled
    from limbeck.recipes.train.finetune import finetune

    notes = found["notes"]
    if not images.is_labelled:
        note = "Which layers matter was not measured: the images have no labels."
        log.info(note)
        if note not in notes:
            notes.append(note)
        return []
    scored = []
    for subject in subjects[: len(config.runs)]:
        runs = fine_tunings(config, file_name(subject.name), subject.source)
        if found["precision"]:
            runs = [filled(run, found["precision"]) for run in runs]
        for number, run in enumerate(runs, 1):
            log.info("%s: fine-tuning %d of %d (%s).", subject.name, number, len(runs), run.out)
            scores = scores_of(finetune(run))
            scored.append(
                {
                    "model": subject.name,
                    "keep_blocks": run.keep_blocks,
                    "label_fraction": run.data.label_fraction,
                    "seed": run.seed,
                    "top1": scores["top1"],
                    "run": str(run.out),
                }
            )
    return scored


def save(out: Path, found: dict[str, Any]) -> None:
    """Write analysis.json, whole or not at all."""
    write_json(out / DATA_FILE, found)


def clear(out: Path) -> None:
    """Take away what another analysis has written there, so that no picture of it is left."""
    from limbeck.evaluation.pictures import PICTURES

    if (out / DATA_FILE).exists():
        for name in (*PICTURES, REPORT_FILE, DATA_FILE):
            (out / name).unlink(missing_ok=True)


def draw(found: dict[str, Any], out: Path) -> list[Path]:
    """All pictures that the data allow; none, and a sentence, without matplotlib."""
    from limbeck.evaluation.pictures import draw_analysis

    try:
        return draw_analysis(found, out)
    except UserError as error:
        log.info("No pictures: %s", error)
        return []


def report(result: Analysis) -> str:
    """What is seen, in words, and where the files are."""
    from limbeck.evaluation.findings import describe

    names = ", ".join(path.name for path in result.pictures) or "none"
    files = f"{result.out}: {DATA_FILE}, {REPORT_FILE}; pictures: {names}."
    return f"{describe(result.found)}\n\n{files}"
