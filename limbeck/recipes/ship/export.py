"""``limbeck export``: a finished network as a file for another runtime, with its proof.

Imports of torch are inside the functions: the config and its checks must answer without it.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
import tyro
from typing_extensions import TypedDict

from limbeck.config import PositiveInt, options
from limbeck.data.options import DataOptions
from limbeck.documents import read_json, write_json
from limbeck.errors import RunError, UserError
from limbeck.export.formats import (
    FORMATS,
    INPUTS,
    FormatName,
    InputKind,
    Precision,
    check_held,
    check_packages,
    input_of,
    module_of,
)
from limbeck.files import MIB, open_file, write_whole
from limbeck.recipes.run import checks
from limbeck.recipes.ship.options import MeasureOptions, ToleranceOptions

if TYPE_CHECKING:
    from limbeck.export.gate import Tolerance
    from limbeck.export.graph import Graph
    from limbeck.models.finished import Savable
    from limbeck.recipes.ship.shown import Shown

log = logging.getLogger("limbeck")

FORMAT = "limbeck-export"
FORMAT_VERSION = 1


@options
class ExportConfig:
    """Write a finished network as a file that runs without this package, and beside it a JSON that
    says what it takes and gives, and proves that it answers as PyTorch does."""

    network: Annotated[str, tyro.conf.Positional] = ""
    """The finished network: a run's folder."""
    to: FormatName = "onnx"
    """onnx for ONNX Runtime and others, openvino, torch (torch.export), or timm: weights that timm
    loads alone."""
    out: Path | None = None
    """The file; RUN-PRECISION.onnx (.xml, .pt2, .safetensors) in the working folder if not given.
    Its JSON has the same name and .json."""
    precision: Precision = "fp32"
    input: InputKind | None = None
    """float: images in 0..1, normalised inside; uint8: pixels, height x width x 3, as decoders give
    them; normalised: nothing is done inside, as timm has it. float if the format can."""
    sizes: Literal["own", "any"] = "own"
    """any: images of any multiple of the patch size, where the network can."""
    pool: Literal["mean", "cls"] = "mean"
    """What a backbone's embedding is: the mean of its patch tokens, or its CLS token."""
    overwrite: bool = False
    """Replace an export of the same name."""

    num_images: PositiveInt = 64
    """Images on which the file is held against PyTorch."""
    crop_ratio: Annotated[float, pydantic.Field(gt=0, le=1)] | None = None
    """Side of the centre crop as a part of the resized image; the run's own if not given."""
    data: DataOptions = DataOptions()
    tolerance: ToleranceOptions = ToleranceOptions()
    measure: MeasureOptions = MeasureOptions()


class _Record(TypedDict, total=False):
    """What of an export's JSON is read again."""

    __pydantic_config__ = pydantic.ConfigDict(extra="allow")  # type: ignore[misc]
    format: str
    sha256: str


@dataclass(frozen=True)
class Exported:
    """The file, its bytes (of all its files), and what its JSON says."""

    file: Path
    num_bytes: int
    record: dict[str, Any]


def check(config: ExportConfig) -> None:
    """All that can be wrong without reading the network; raises UserError."""
    checks.check_one_process("export is one process")
    if not config.network:
        raise UserError("A network is needed; run: limbeck export RUN --to onnx.")
    checks.check_path(config.network, "limbeck export")
    check_held(config.to, config.precision, *(["any"] if config.sizes == "any" else []))
    input_of(config.to, config.input)
    check_packages(config.to)
    if config.data.root:
        checks.check_data(config.data)
    else:
        checks.check_unset(config, ["data"], "without --data IMAGES")
    out = file_of(config)
    if out.suffix != FORMATS[config.to].suffix:
        raise UserError(
            f"{out} is no name of such a file; let it end in {FORMATS[config.to].suffix}."
        )
    if not out.parent.is_dir():
        raise UserError(f"There is no folder {out.parent} to write in; make it first.")
    check_place(out, config.overwrite)


def file_of(config: ExportConfig) -> Path:
    """Where the file goes."""
    name = Path(config.network).resolve().name
    return config.out or Path(f"{name}-{config.precision}{FORMATS[config.to].suffix}")


def check_place(out: Path, overwrite: bool) -> None:
    """Raise UserError for names that are taken, and always where that is not by an export."""
    record = record_of(out)
    taken = [each for each in (out, record, out.with_suffix(".bin")) if each.exists()]
    if out.suffix != ".xml":
        taken = [each for each in taken if each.suffix != ".bin" or each == out]
    if not taken:
        return
    if not overwrite:
        raise UserError(
            f"{taken[0]} exists; choose another name, or replace an export with --overwrite."
        )
    said: _Record = read_json(record, _Record) if record.is_file() else {}
    is_ours = said.get("format") == FORMAT
    if not is_ours or (out.exists() and said.get("sha256") != _digest(out)):
        raise UserError(
            f"{taken[0]} is no export that {record.name} describes, so it is not replaced; choose "
            "another name."
        )


def record_of(out: Path) -> Path:
    """The JSON beside a file."""
    return out.with_name(f"{out.name}.json")


def export(config: ExportConfig) -> Exported:
    """Write the file and its JSON, both or none.

    Raises UserError for what the format, the network or the images do not allow, and RunError for
    a file that does not answer as PyTorch does.
    """
    check(config)
    from limbeck.export.graph import Graph
    from limbeck.models.dense.segmenter import Segmenter
    from limbeck.models.finished import load_finished

    network = load_finished(config.network)
    is_segmenter = isinstance(network, Segmenter)
    check_held(config.to, *(["segmenter"] if is_segmenter else []))
    if network.facts.num_classes:
        checks.check_unset(config, ["pool"], f"on {config.network}, which gives classes")
    kind = input_of(config.to, config.input)
    graph = Graph(network, kind, pool=config.pool, any_size=config.sizes == "any")
    module = module_of(config.to)
    out = file_of(config)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / out.name
        said = {"input": _input(graph), **module.write(graph, file, config.precision)}
        proof = prove(config, network, graph, file, said)
        record = _describe(config, network, graph, file, said) | {"proof": proof}
        num_bytes = sum(each.stat().st_size for each in Path(folder).iterdir())
        proof["bytes"] = num_bytes
        for each in sorted(Path(folder).iterdir()):
            with open_file(each) as stream:
                write_whole(out.with_name(each.name), lambda to: shutil.copyfileobj(stream, to))
    # Last: where there is a record, the file is complete.
    write_json(record_of(out), record)
    return Exported(out, num_bytes, record)


def prove(
    config: ExportConfig, network: Savable, graph: Graph, file: Path, said: dict[str, Any]
) -> dict[str, Any]:
    """What the file answers and costs, beside PyTorch; raises RunError where they disagree."""
    from limbeck.export.gate import Comparison
    from limbeck.export.graph import Graph
    from limbeck.export.measure import measure
    from limbeck.recipes.ship.shown import Scorer, open_shown

    shown = open_shown(network, config.data, config.num_images, config.crop_ratio)
    tolerance = _tolerance(config)
    reference = Graph(network, pool=config.pool)
    run = module_of(config.to).load(file, said, None)
    comparison, scorer = Comparison(), Scorer(network.facts)
    for batch in shown.batches():
        expected = reference.answer(batch.pixels)
        found = run(graph.feed(batch.pixels))
        comparison.add(batch.keys, expected, found)
        if batch.labels is not None:
            scorer.add(expected, found, labels=batch.labels)
    if graph.any_size:
        batch = next(shown.batches(other_size=graph.other_size))
        wide = Graph(network, pool=config.pool, any_size=True)
        keys = [f"{key} at another size" for key in batch.keys]
        comparison.add(keys, wide.answer(batch.pixels), run(graph.feed(batch.pixels)))
    failures = comparison.failures(tolerance) + scorer.failures(tolerance.loss)
    if failures:
        names = [comparison.keys[place] for place in comparison.worst()]
        raise RunError(
            f"The file does not answer as PyTorch does, and is not written: {'; '.join(failures)}. "
            f"Worst images: {', '.join(names)}."
            + _where(config, network, graph, shown, names[0], tolerance)
        )
    sizes = sorted({1, config.measure.batch_size})
    runs = config.measure.num_runs
    return {
        "images": {"number": len(comparison.keys), "source": shown.place},
        "outputs": comparison.plain(),
        "worst_images": [comparison.keys[place] for place in comparison.worst()],
        "tolerance": vars(tolerance),
        "score": scorer.plain(),
        "measured": measure(config.to, file, said, sizes, runs),
        "pytorch": measure("reference", Path(config.network), said, sizes, runs),
        "machine": _machine(),
    }


def _where(
    config: ExportConfig,
    network: Savable,
    graph: Graph,
    shown: Shown,
    key: str,
    tolerance: Tolerance,
) -> str:
    """A sentence (with a leading space) on the first block that differs, or ''."""
    from limbeck.export.gate import Comparison, first_that_differs
    from limbeck.export.graph import Graph

    if config.to == "timm":  # it has no names for what is between
        return ""
    seen = next((each for each in shown.batches() if key in each.keys), None)
    if seen is None:
        return ""
    opened, reference = (
        Graph(network, kind, pool=config.pool, shows_blocks=True)
        for kind in (graph.input_kind, "float")
    )
    with tempfile.TemporaryDirectory() as folder:
        file, module = Path(folder) / file_of(config).name, module_of(config.to)
        said = module.write(opened, file, config.precision)
        found = module.load(file, said, None)(opened.feed(seen.pixels))
    comparison = Comparison()
    comparison.add(seen.keys, reference.answer(seen.pixels), found)
    first = first_that_differs(comparison, tolerance)
    return f" The first part that differs: {first}." if first else ""


def _tolerance(config: ExportConfig) -> Tolerance:
    from limbeck.export.gate import TOLERANCES

    own, asked = TOLERANCES[config.precision], config.tolerance
    given = {name: value for name, value in vars(asked).items() if value is not None}
    return replace(own, **given)


def _input(graph: Graph) -> dict[str, Any]:
    facts = graph.encoder.facts
    return {
        "kind": graph.input_kind,
        "words": INPUTS[graph.input_kind],
        "size": list(facts.img_size),
        "shape": [None if side < 0 else side for side in graph.shape],
        "multiple_of": graph.step if graph.any_size else None,
    }


def _describe(
    config: ExportConfig, network: Savable, graph: Graph, file: Path, said: dict[str, Any]
) -> dict[str, Any]:
    from importlib.metadata import version

    from limbeck import __version__
    from limbeck.recipes.run.lineage import versions
    from limbeck.recipes.ship.shown import preprocessing_of

    facts, known = network.facts, FORMATS[config.to]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "made_by": f"limbeck {__version__}",
        "file": file.name,
        "sha256": _digest(file),
        "runtime": known.title,
        "precision": config.precision,
        "computes": known.computes.get(config.precision, config.precision),
        **said,
        "outputs": graph.outputs(),
        "classes": [str(each) for each in facts.origin.get("classes", ())],
        "preprocessing": preprocessing_of(network, config.crop_ratio),
        "source": {
            "run": str(Path(config.network).resolve().name),
            "architecture": facts.architecture["name"],
            "weight_hash": facts.origin.get("weight_hash"),
            "licence": facts.origin.get("licence"),
        },
        "versions": versions() | {each: version(each) for each in known.packages},
    }


def _machine() -> str:
    from limbeck.engine.machine import cpu_kind, cpu_name
    from limbeck.limits import num_cores

    return f"{cpu_name()}, {cpu_kind()}, {num_cores()} cores"


def _digest(file: Path) -> str:
    digest = sha256()
    with open_file(file) as stream:
        while block := stream.read(MIB):
            digest.update(block)
    return digest.hexdigest()


def report(done: Exported) -> str:
    """The proof, for the command line."""
    from limbeck.evaluation.report import TERMINAL, table
    from limbeck.export.gate import summary

    record, proof = done.record, done.record["proof"]
    rows = []
    for case, own in proof["measured"].items():
        other = proof["pytorch"][case]
        rows.append({
            "case": case,
            "ms": f"{own['median_ms']:.2f}",
            "95 %": f"{own['p95_ms']:.2f}",
            "PyTorch": f"{other['median_ms']:.2f}",
            "faster": f"{other['median_ms'] / own['median_ms']:.1f} times",
            "MiB": f"{own['peak_mib']:.0f}" if own["peak_mib"] else None,
        })  # fmt: skip
    score = proof["score"]
    scored = [
        f"  {score['name']}: {100 * score['file']:.2f} %, in PyTorch "
        f"{100 * score['pytorch']:.2f} %, on {score['images']} images with labels"
    ] if score else []  # fmt: skip
    images = proof["images"]
    return "\n".join([
        f"Wrote {done.file} ({done.num_bytes / MIB:.1f} MiB; {record['runtime']}, "
        f"{record['precision']}) and {record_of(done.file).name}.",
        f"It takes {record['input']['words']}.",
        f"Against PyTorch in fp32, on {images['number']} images of {images['source']}:",
        *summary(proof),
        *scored,
        f"On {proof['machine']}; median and 95 % of passes, and PyTorch's median, in ms:",
        table(rows, width=TERMINAL),
    ])  # fmt: skip
