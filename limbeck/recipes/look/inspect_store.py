"""What a target store is, in words: for ``limbeck inspect``."""

from pathlib import Path
from typing import Any

from limbeck.data.target_store.manifest import MANIFEST
from limbeck.data.target_store.reader import Survey


def is_store(address: str) -> bool:
    """Whether an address may be a store's: none of a weights file, or a folder with a manifest."""
    return "://" in address or Path(address).expanduser().joinpath(MANIFEST).is_file()


def report(found: Survey) -> str:
    """The description for people: the manifest, how much is written, and what is wrong with parts,
    but for checksums, which are not compared."""
    manifest, records = found.manifest, found.records
    num_images = sum(record.num_images for record in records.values())
    num_bytes = sum(record.size for record in records.values())
    num_skipped = len({key for record in records.values() for key in record.skipped})
    num_finished = sum(key.fill == 0 for key in records)
    facts = manifest.teacher.get("facts", {})
    origin = facts.get("origin", {})
    num_views = num_images * manifest.num_views
    per_view = f" ({num_bytes / num_views:.2f} per view, all counted)" if num_views else ""
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
        "images": f"{num_images:,} with records, {num_skipped:,} could not be read; "
        f"begun with {manifest.data.get('num_images', 'an unknown number')} of "
        f"{manifest.data.get('root', 'an unknown place')}",
        "parts": f"{num_finished:,} of {manifest.num_parts:,} finished, "
        f"{len(records) - num_finished:,} fill-ins",
        "bytes": f"{num_bytes:,}{per_view}",
        "versions": _words(manifest.versions),
        "format": f"{manifest.format_version}, store {manifest.store_id}",
    }
    said = [found.place.address, *(f"  {name:<10}{text}" for name, text in lines.items())]
    return "\n".join([*said, *(f"  PROBLEM   {problem}" for problem in found.problems)])


def _words(value: Any, prefix: str = "") -> str:
    """Nested plain data in one line."""
    if isinstance(value, dict):
        texts = [_words(each, f"{prefix}{name} ") for name, each in value.items()]
        return ", ".join(texts) or f"{prefix}none"
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    return f"{prefix}{value}"
