"""``limbeck inspect``: what is in this weights file, run, Hugging Face folder or target store?"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated

import tyro

from limbeck.config import options
from limbeck.errors import UserError
from limbeck.recipes.run import checks

if TYPE_CHECKING:
    from limbeck.data.target_store.reader import Survey
    from limbeck.models.licences import Ancestor
    from limbeck.models.origins.inspection import Inspection


_WIDTH = 80


@options
class InspectConfig:
    """Say what a weights file is: layout, shapes, head count if known, keys that do not match; or
    what a store of targets holds, of which teacher and views, and how much of it is written."""

    file: Annotated[str, tyro.conf.Positional] = ""
    """A .safetensors or .pth file, a run's folder, a Hugging Face model folder, or a store of
    targets (a folder, or an address such as s3://bucket/store)."""


def inspect(config: InspectConfig) -> Inspection | Survey:
    """Describe a file without building a network; raises UserError where it can't be read."""
    if not config.file:
        raise UserError("No file is named; run: limbeck inspect FILE.")
    if "://" not in config.file:
        checks.check_path(config.file, "limbeck inspect")
    # Not before: a mistake in the path is answered without torch.
    from limbeck.data.target_store.reader import survey_store
    from limbeck.recipes.look.inspect_store import is_store

    if is_store(config.file):
        return survey_store(config.file)
    from limbeck.models.origins.inspection import inspect_file

    return inspect_file(config.file)


def report(found: Inspection | Survey) -> str:
    """The description for people."""
    from limbeck.data.target_store.reader import Survey
    from limbeck.recipes.look import inspect_store

    if isinstance(found, Survey):
        return inspect_store.report(found)
    facts = {
        "kind": f"{found.kind}: {found.description}" if found.description else found.kind,
        "layout": found.layout,
        "tensors": f"{found.num_tensors:,} with {found.num_parameters:,} values, "
        + ", ".join(f"{count} x {dtype}" for dtype, count in found.dtypes.items()),
        "network": _network(found),
        "heads": _heads(found),
        "decoder": found.decoder,
    }
    told = [(name, value) for name, value in facts.items() if value]
    told += [("says", f"{name} = {_short(value)}") for name, value in found.metadata.items()]
    told += [("from", _ancestor(each)) for each in found.lineage]
    told += [("note", note) for note in found.notes]
    lines = [str(found.path)]
    sides = {name: " x ".join(map(str, shape)) for name, shape in found.shapes.items()}
    lines += [_row(name, shape or "scalar") for name, shape in sides.items()]
    if found.unmatched:
        lines.append(f"  UNMATCHED {len(found.unmatched)} tensors; this file can't be loaded:")
        for name in found.unmatched:
            lines += _wrapped(name, "    ", "      ")
    # Last, where it is still seen after a thousand names.
    for name, value in told:
        lines += _wrapped(value, f"  {name:<10}", " " * 12)
    return "\n".join(lines)


def _wrapped(text: str, start: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=start, subsequent_indent=indent, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _row(name: str, shape: str) -> str:
    """A tensor in a line of the terminal's width, however long its name."""
    room = _WIDTH - 3 - len(shape)
    name = name if len(name) <= room else f"{name[: room - 3]}..."
    return f"  {name:<{min(44, room)}} {shape}"


def _network(found: Inspection) -> str:
    parts = [
        (found.depth, "{} blocks"),
        (found.embed_dim, "width {}"),
        (found.patch_size, "patches of {} px"),
        (found.img_size and " x ".join(map(str, found.img_size)), "images of {} px"),
        (found.num_prefix_tokens, "{} prefix tokens"),
        (found.num_classes, "{} classes"),
    ]
    return ", ".join(text.format(value) for value, text in parts if value is not None)


def _heads(found: Inspection) -> str:
    if found.num_heads is None:
        return found.heads_known_from
    counts = set(found.num_heads)
    text = str(found.num_heads[0]) if len(counts) == 1 else ", ".join(map(str, found.num_heads))
    return f"{text} ({found.heads_known_from})" if found.heads_known_from else text


def _ancestor(found: Ancestor) -> str:
    hashed = f", weights {found.weight_hash[:12]}" if found.weight_hash else ""
    licence = found.licence or "not known"
    terms = "" if found.terms in ("open", "unknown") else f" ({found.terms})"
    return f"{found.role} {found.source}, licence {licence}{terms}{hashed}"


def _short(value: object) -> str:
    """A value in a line; of a record within the record only what is plain."""
    if isinstance(value, dict):
        plain = {name: each for name, each in value.items() if not isinstance(each, dict | list)}
        value = ", ".join(f"{name} {each}" for name, each in plain.items())
    return textwrap.shorten(str(value), 100, placeholder=" ...")
