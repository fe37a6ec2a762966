"""What a target store is, in words: for ``limbeck inspect``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.data.target_store.manifest import MANIFEST, Manifest
from limbeck.data.target_store.reader import survey_store


@dataclass(frozen=True)
class StoreInspection:
    """A store's manifest, and how much of it is written.

    ``num_bytes`` of all finished parts with their key hashes; ``problems`` of parts, but for
    checksums, which are not compared.
    """

    address: str
    manifest: Manifest
    num_images: int
    num_skipped: int
    num_finished: int
    num_fill_ins: int
    num_bytes: int
    problems: list[str]


def is_store(address: str) -> bool:
    """Whether an address may be a store's: none of a weights file, or a folder with a manifest."""
    return "://" in address or Path(address).expanduser().joinpath(MANIFEST).is_file()


def inspect_store(address: str) -> StoreInspection:
    """Describe a store without reading its records; raises UserError where there is none."""
    survey = survey_store(address)
    records = survey.records
    return StoreInspection(
        address=address,
        manifest=survey.manifest,
        num_images=sum(record.num_images for record in records.values()),
        num_skipped=len({key for record in records.values() for key in record.skipped}),
        num_finished=sum(key.fill == 0 for key in records),
        num_fill_ins=sum(key.fill > 0 for key in records),
        num_bytes=sum(record.size for record in records.values()),
        problems=[str(problem) for problem in survey.problems],
    )


def report(found: StoreInspection) -> str:
    """The description for people."""
    manifest = found.manifest
    facts = manifest.teacher.get("facts", {})
    origin = facts.get("origin", {})
    num_views = found.num_images * manifest.num_views
    per_view = f" ({found.num_bytes / num_views:.2f} per view, all counted)" if num_views else ""
    views = "view" if manifest.num_views == 1 else "views, which a longer training uses again"
    lines = {
        "kind": f"target store: {manifest.kind}; {_words(manifest.params)}",
        "record": ", ".join(
            f"{name} {' x '.join(map(str, spec.shape)) or 'scalar'} {spec.dtype}"
            for name, spec in manifest.arrays.items()
        )
        + f": {manifest.bytes_per_record:,} bytes",
        "teacher": f"{origin.get('source', 'not known')}, {facts.get('num_classes', 0):,} classes, "
        f"weights {manifest.identity['teacher']['weights'] or 'without a known hash'}, "
        f"{manifest.teacher.get('precision', 'precision not known')}",
        "pixels": f"teacher's mean {_words(facts.get('mean'))}, std {_words(facts.get('std'))}",
        "views": f"{manifest.num_views:,} {views}",
        "recipe": _words(manifest.recipe),
        "images": f"{found.num_images:,} with records, {found.num_skipped:,} could not be read; "
        f"begun with {manifest.data.get('num_images', 'an unknown number')} of "
        f"{manifest.data.get('root', 'an unknown place')}",
        "parts": f"{found.num_finished:,} of {manifest.num_parts:,} finished, "
        f"{found.num_fill_ins:,} fill-ins",
        "bytes": f"{found.num_bytes:,}{per_view}",
        "versions": _words(manifest.versions),
        "format": f"{manifest.format_version}, store {manifest.store_id}",
    }
    said = [found.address, *(f"  {name:<10}{text}" for name, text in lines.items())]
    return "\n".join([*said, *(f"  PROBLEM   {problem}" for problem in found.problems)])


def _words(value: Any, prefix: str = "") -> str:
    """Nested plain data in one line."""
    if isinstance(value, dict):
        texts = [_words(each, f"{prefix}{name} ") for name, each in value.items()]
        return ", ".join(texts) or f"{prefix}none"
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    return f"{prefix}{value}"
