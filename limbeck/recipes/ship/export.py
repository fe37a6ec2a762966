"""``limbeck export``: a finished network as a file for another runtime, with its proof.

Imports of torch are inside the functions: the config and its checks must answer without it.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass, replace
from hashlib import file_digest, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
import tyro

from limbeck.config import PositiveInt, options
from limbeck.data.options import DataOptions
from limbeck.documents import read_json, write_json
from limbeck.errors import RunError, UserError
from limbeck.exports.formats import (
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
from limbeck.files import MIB, open_file, write_bytes
from limbeck.recipes.run import checks
from limbeck.recipes.ship.options import Int8Options, MeasureOptions, ToleranceOptions

if TYPE_CHECKING:
    from limbeck.exports.gate import Tolerance
    from limbeck.exports.graph import Graph
    from limbeck.models.finished import Savable
    from limbeck.recipes.ship.shown import Shown
    from limbeck.records import Batch

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
    int8: Int8Options = Int8Options()
    tolerance: ToleranceOptions = ToleranceOptions()
    measure: MeasureOptions = MeasureOptions()


@dataclass(frozen=True)
class Exported:
    """The file, and what its JSON says."""

    file: Path
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
    if config.precision != "int8":
        checks.check_unset(config, ["int8"], "without --precision int8")
    if config.data.root:
        checks.check_data(config.data)
    else:
        checks.check_unset(config, ["data"], "without --data IMAGES")
    out, suffix = file_of(config), FORMATS[config.to].suffix
    if out.suffix != suffix:
        raise UserError(f"{out} is no name of such a file; let it end in {suffix}.")
    if not out.parent.is_dir():
        raise UserError(f"There is no folder {out.parent} to write in; make it first.")
    check_place(out, config.overwrite)


def file_of(config: ExportConfig) -> Path:
    """Where the file goes."""
    name = Path(config.network).resolve().name
    return config.out or Path(f"{name}-{config.precision}{FORMATS[config.to].suffix}")


def record_of(out: Path) -> Path:
    """The JSON beside a file."""
    return out.with_name(f"{out.name}.json")


def check_place(out: Path, overwrite: bool) -> None:
    """Raise UserError for names that are taken, whatever ``overwrite`` says if not by an export."""
    record = record_of(out)
    said = read_json(record) if record.is_file() else {}
    is_stopped = said.get("unfinished", False)
    taken = [each for each in (*files_of(out), record) if each.exists()]
    if taken and not overwrite:
        raise UserError(
            f"{taken[0]} is of an export that was stopped; make it again with --overwrite."
            if is_stopped
            else f"{taken[0]} exists; choose another name, or replace an export with --overwrite."
        )
    digests = (said.get("sha256"), *([said.get("replaces"), ""] if is_stopped else []))
    is_ours = said.get("format") == FORMAT and digest_of(out) in digests
    if taken and not is_ours:
        raise UserError(
            f"{taken[0]} is of no export that {record.name} describes, so it is not replaced; "
            "choose another name."
        )


def export(config: ExportConfig) -> Exported:
    """Write the file and its JSON, both or none.

    Raises UserError for what the format, the network or the images do not allow, and RunError for
    a file that does not answer as PyTorch does.
    """
    check(config)
    import torch

    from limbeck.exports.gate import TOLERANCES
    from limbeck.exports.graph import Graph
    from limbeck.models.finished import load_finished
    from limbeck.recipes.ship.int8 import write_int8

    network = load_finished(config.network)
    facts = network.facts
    kind = facts.architecture["kind"]
    check_held(config.to, kind, facts.architecture["kwargs"].get("head", ""))
    if facts.num_classes:
        checks.check_unset(config, ["pool"], f"on {config.network}, which gives classes")
    if kind in WHOLE:
        checks.check_unset(config, ["crop_ratio"], f"on {config.network}, which sees {WHOLE[kind]}")
    if getattr(network, "has_masks", False):
        logging.getLogger("limbeck").warning(
            "The file gives boxes alone; masks are limbeck predict's."
        )
    ends: dict[str, Any] = {"pool": config.pool, "any_size": config.sizes == "any"}
    graph = Graph(network, input_of(config.to, config.input), **ends)
    shown, others = _shown(config, network)
    asked = {name: each for name, each in vars(config.tolerance).items() if each is not None}
    tolerance = replace(TOLERANCES[config.precision], **asked)
    out = file_of(config)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / out.name
        said = _input(graph)
        if others is not None:
            images = torch.cat([each.images for each in others.batches(facts.img_size)])
            said |= write_int8(config.to, graph, file, images, config.int8, tolerance)
        else:
            said |= module_of(config.to).write(graph, file, config.precision)
        proof = prove(config, network, graph, file, said, shown, tolerance)
        record = _describe(config, graph, file, said, proof)
        # First whose files these will be, so that whoever is stopped between may write them again.
        claim = {name: record[name] for name in ("format", "format_version", "file", "sha256")}
        write_json(record_of(out), claim | {"unfinished": True, "replaces": digest_of(out)})
        if len(files_of(out)) > 1:  # no time at which it stands beside another's weights
            out.unlink(missing_ok=True)
        for each in sorted(Path(folder).iterdir()):
            write_bytes(out.with_name(each.name), each.read_bytes())
    write_json(record_of(out), record)  # last: where it is whole, the file is, too
    return Exported(out, record)


def _shown(config: ExportConfig, network: Savable) -> tuple[Shown, Shown | None]:
    """The images of the proof and, of int8 alone, those that tune it: never the same."""
    from limbeck.recipes.ship.int8 import num_wanted
    from limbeck.recipes.ship.shown import Shown, open_shown, own_crop_ratio, parted

    source, trained, data = open_shown(network, config.data)
    is_seen = not config.data.root and trained is None
    ratio, others = config.crop_ratio or own_crop_ratio(network), None
    if config.precision == "int8":
        if len(source) < 2:
            raise UserError("int8 needs images beside that of the proof; name more with --data.")
        source, rest = parted(source, trained, config.num_images)
        others = Shown(network, rest, data, num_wanted(config.int8), ratio)
    place = (data.eval_root if trained is not None else "") or data.root
    known: dict[str, Any] = {"place": place, "seen_in_training": is_seen}
    return Shown(network, source, data, config.num_images, ratio, **known), others


def prove(
    config: ExportConfig, network: Savable, graph: Graph, file: Path, said: dict[str, Any],
    shown: Shown, tolerance: Tolerance,
) -> dict[str, Any]:  # fmt: skip
    """What the file answers and costs, beside PyTorch; raises RunError where they disagree."""
    from limbeck.evaluation.latency import busy_note, describe_machine
    from limbeck.exports.gate import Comparison
    from limbeck.exports.graph import Graph
    from limbeck.exports.measure import measure
    from limbeck.recipes.ship.shown import scorer_of

    run = module_of(config.to).load(file, said, None)
    comparison, scorer = Comparison(), scorer_of(network.facts)
    for size in graph.sizes:
        is_own = size == network.facts.img_size
        reference = Graph(network, pool=config.pool, any_size=not is_own)
        for batch in shown.batches(size):
            expected, found = reference.answer(batch.images), run(graph.feed(batch.images))
            comparison.add(batch.keys, expected, found)
            if is_own:
                scorer.add(batch, expected, found)
    failures = comparison.failures(tolerance) + scorer.failures(tolerance.loss)
    if failures:
        worst = comparison.worst()
        batch = next(each for each in shown.batches(graph.sizes[0]) if worst[0] in each.keys)
        where = (
            _where_int8(said["int8"]) if "int8" in said
            else _where(config, network, graph, batch, tolerance)
        )  # fmt: skip
        raise RunError(
            f"The file does not answer as PyTorch does, and is not written: {'; '.join(failures)}. "
            f"Worst images: {', '.join(worst)}.{where}"
        )
    cases = sorted({1, config.measure.batch_size}), config.measure.num_runs
    return {
        "num_images": len(comparison.keys) // len(graph.sizes),
        "data": shown.place,
        "seen_in_training": shown.seen_in_training,
        "outputs": comparison.plain(),
        "worst_images": comparison.worst(),
        "tolerance": vars(tolerance),
        "score": scorer.plain(),
        "thresholds": scorer.thresholds(),
        "bytes": sum(each.stat().st_size for each in file.parent.iterdir()),
        "machine": describe_machine(),
        "busy": busy_note(),
        "measured": measure(config.to, file, said, *cases),
        "pytorch": measure("reference", Path(config.network), said, *cases),
    }


def _where(
    config: ExportConfig, network: Savable, graph: Graph, batch: Batch, tolerance: Tolerance
) -> str:
    """A sentence (with a leading space) on the first block that differs, or ''."""
    from limbeck.exports.gate import Comparison
    from limbeck.exports.graph import Graph

    if not FORMATS[config.to].shows_blocks:
        return ""
    kinds = graph.input_kind, "float"
    opened, reference = (Graph(network, kind, shows_blocks=True) for kind in kinds)
    with tempfile.TemporaryDirectory() as folder:
        file, module = Path(folder) / file_of(config).name, module_of(config.to)
        said = module.write(opened, file, config.precision)
        found = module.load(file, said, None)(opened.feed(batch.images))
    comparison = Comparison()
    comparison.add(batch.keys, reference.answer(batch.images), found)
    first = comparison.first(tolerance)
    return f" The first part that differs: {first}." if first else ""


def _where_int8(told: dict[str, Any]) -> str:
    """A sentence (with a leading space) on the layers that int8 hurts, and what may help."""
    from limbeck.recipes.ship.int8 import worst_layers

    remedy = "" if told["repair"] else " Repair the weights for int8 with --int8.repair 300."
    return worst_layers(told["sensitivity"]) + remedy


def _input(graph: Graph) -> dict[str, Any]:
    return {"input": {
        "kind": graph.input_kind,
        "words": INPUTS[graph.input_kind],
        "size": list(graph.facts.img_size),
        "shape": [None if side < 0 else side for side in graph.shape],
        "multiple_of": graph.facts.patch_size if graph.any_size else None,
    }}  # fmt: skip


def _describe(
    config: ExportConfig, graph: Graph, file: Path, said: dict[str, Any], proof: dict[str, Any]
) -> dict[str, Any]:
    """The JSON."""
    from importlib.metadata import version

    from limbeck.models.licences import ancestors
    from limbeck.recipes.run.lineage import versions
    from limbeck.recipes.ship.shown import own_crop_ratio, preprocessing_of

    facts, known = graph.facts, FORMATS[config.to]
    origin = facts.origin
    ratio = config.crop_ratio or own_crop_ratio(graph.encoder)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "file": file.name,
        "sha256": digest_of(file),
        "runtime": known.title,
        "precision": config.precision,
        "computes": known.computes.get(config.precision, config.precision),
        **said,
        "outputs": {
            name: {"dtype": str(each.dtype).removeprefix("torch."), "shape": [None, *each.shape]}
            for name, each in graph.outputs.items()
        },
        "classes": [str(each) for each in origin.get("classes", ())],
        "preprocessing": preprocessing_of(facts, ratio),
        "source": {
            "run": Path(config.network).resolve().name,
            "architecture": facts.architecture["name"],
            **{name: origin.get(name) for name in ("weight_hash", "licence")},
        },
        "lineage": [each.plain() for each in ancestors(origin)],
        "versions": versions() | {each: version(each) for each in known.packages},
        "proof": proof,
    }


WHOLE = {"segmenter": "windows", "detector": "whole images"}
"""Kinds of networks that see no crops, and what they see."""


def files_of(file: Path) -> list[Path]:
    """What an exported file is made of: itself and, of an .xml, the .bin that has its weights."""
    return [file, *([file.with_suffix(".bin")] if file.suffix == ".xml" else [])]


def digest_of(file: Path) -> str:
    """SHA-256 of an exported file, one after the other where it is two; '' where it is missing."""
    digest = sha256()
    for each in files_of(file):
        if not each.is_file():
            return ""
        with open_file(each) as stream:
            file_digest(stream, lambda: digest)
    return digest.hexdigest()


def report(done: Exported) -> str:
    """The proof, for the command line."""
    from limbeck.evaluation.report import TERMINAL, table
    from limbeck.exports.gate import summary

    record, proof = done.record, done.record["proof"]
    rows = []
    for case, own in proof["measured"].items():
        eager = proof["pytorch"][case]["median_ms"]
        rows.append({
            "case": case,
            "ms": f"{own['median_ms']:.2f}",
            "95 %": f"{own['p95_ms']:.2f}",
            "PyTorch": f"{eager:.2f}",
            "faster": f"{eager / own['median_ms']:.1f} times",
            "MiB": None if own["peak_mib"] is None else f"{own['peak_mib']:.0f}",
        })  # fmt: skip
    lines = [
        f"Wrote {done.file} ({proof['bytes'] / MIB:.1f} MiB; {record['runtime']}, "
        f"{record['computes']}) and {record_of(done.file).name}.",
        f"It takes {record['input']['words']}.",
        f"Against PyTorch in fp32, on {proof['num_images']} images of {proof['data']}"
        f"{', on which it was trained' if proof['seen_in_training'] else ''}"
        f"{', the middle window of each' if 'mask' in record['outputs'] else ''}:",
        *summary(proof["outputs"]),
    ]
    if score := proof["score"]:
        lines.append(
            f"  {score['name']}: {100 * score['file']:.2f} %, in PyTorch "
            f"{100 * score['pytorch']:.2f} %, on {score['images']} images with labels"
        )
    if told := record.get("int8"):
        from limbeck.recipes.ship.int8 import words_of

        lines += words_of(told, proof["thresholds"])
    lines.append(f"On {proof['machine']}; median and 95 % of passes, and PyTorch's median, in ms:")
    noted = [proof["busy"]] if proof["busy"] else []
    return "\n".join([*lines, table(rows, width=TERMINAL), *noted])
