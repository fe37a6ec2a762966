"""From soft labels in TinyViT's released layout (arXiv 2207.10666) to a target store."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from limbeck.data.loader import VIEW_SEEDS
from limbeck.data.open import data_fingerprint
from limbeck.data.options import DataOptions, ReleasedViews
from limbeck.data.released_keys import LISTINGS, indices_by_name, indices_by_position
from limbeck.data.released_logits import ReleasedLogits, soft_labels
from limbeck.data.released_views import FRAME
from limbeck.data.source import Source
from limbeck.data.target_store import Manifest
from limbeck.data.target_store.located import SEED_SPEC
from limbeck.data.target_store.parts import choose_views, key_hashes, num_parts_for
from limbeck.data.target_store.writer import open_writer
from limbeck.data.view_batches import view_fingerprints
from limbeck.errors import UserError
from limbeck.methods.soft_targets import RECORDS, ProbTargets
from limbeck.models.encoder import EncoderFacts
from limbeck.recipes.run.lineage import versions
from limbeck.recipes.targets.reading import released_recipe, stored_facts

log = logging.getLogger("limbeck")

REPORT_EVERY = 30.0  # seconds
SHOWN = {"images": "student"}
"""What the released teacher saw, as in ``Method.shown_to_teacher``: all that the student does."""


def find_images(
    source: Source,
    keys: Sequence[str],
    kind: Literal["names", "positions"] | None,
    listing: str | None = None,
) -> dict[str, int]:
    """Key -> index in ``source``, of the keys that stand for one of its images.

    Raises UserError where none does, and for numbers of which it is not said what they are, or in
    which listing.
    """
    if kind is None and all(key.isdecimal() for key in keys):
        raise UserError(
            f"The keys are numbers, such as {keys[0]}: pass --keys positions if they are places "
            "in the listing of exactly these images (the released code's where a data set brings "
            "no keys), or --keys names if images are named so."
        )
    if kind != "positions":
        return indices_by_name(source, keys)
    of_listing = {each: indices_by_position(source, keys, each) for each in LISTINGS}
    if listing is None:
        if len({tuple(each.values()) for each in of_listing.values()}) > 1:
            place = next(p for p, i in of_listing["folder"].items() if of_listing["tar"][p] != i)
            folder, tar = (source.key(each[place]) for each in of_listing.values())
            raise UserError(
                f"Image {place} is {folder} in the listing of a folder, and {tar} in that of a "
                "tar, which the released code sorts otherwise: pass --listing folder or --listing "
                "tar, whichever the soft labels were saved from."
            )
        listing = "folder"
    found = of_listing[listing]
    first, last = (source.key(found[str(place)]) for place in (0, len(found) - 1))
    log.warning(
        "The keys are taken as positions in the listing of the images, as of a %s, from %s to %s. "
        "If it was saved from the other kind, of folder and tar, or any of "
        "them was added, removed or renamed since the soft labels were stored, those that follow "
        "have the soft labels of others, and nothing can tell.",
        listing, first, last,
    )  # fmt: skip
    return found


def find_records(released: ReleasedLogits, index_of: dict[str, int], num_images: int) -> np.ndarray:
    """The place of each image's record in each epoch, (E, n) int32; -1 where there is none."""
    # 4 bytes per image and view: 5 GB of the 90 views of ImageNet-22k, the largest released set.
    places = np.full((released.num_views, num_images), -1, np.int32)
    for epoch in range(released.num_views):
        for key, place in released.keys(epoch).items():
            index = index_of.get(key)
            if index is not None:
                places[epoch, index] = place
    return places


@dataclass(frozen=True)
class Conversion:
    """Writes the records in ``places`` (E, n), of the images of ``source``, to a store."""

    released: ReleasedLogits
    source: Source
    data: DataOptions
    places: np.ndarray
    teacher: str
    keys: str
    """What the keys were taken for: names, or positions, which are a folder's unless it says so."""

    def write(self, address: str) -> int:
        """Write what the store lacks, part by part; returns the number of images."""
        manifest = self._manifest()
        writer = open_writer(address, manifest)
        left = writer.missing(self.source.key(index) for index in range(len(self.source)))
        begun_with, own = writer.manifest.data, manifest.data
        names = ("released_fingerprint", "keys")  # the layout tells no teacher to compare
        if left and any(begun_with.get(name) != own[name] for name in names):
            raise UserError(
                f"{address} was begun with other soft labels ({begun_with.get('converted_from')}, "
                f"keys taken for {begun_with.get('keys')}); go on with those, or choose another "
                "place."
            )
        num_new, told = 0, time.monotonic()
        for number, (part, indices) in enumerate(left.items(), 1):
            is_whole = (self.places[:, indices] >= 0).all(axis=0)
            whole = indices[is_whole]
            writer.write_part(
                part,
                key_hashes(self.source.key(index) for index in whole),
                self._arrays(whole),
                skipped={self.source.key(i): self._lack(i) for i in indices[~is_whole]},
                fingerprints=self._fingerprints(whole, writer.manifest.num_parts),
            )
            num_new += len(whole)
            if time.monotonic() - told > REPORT_EVERY:
                told = time.monotonic()
                log.info("%d of %d parts are written.", number, len(left))
        writer.check_there(left)
        return num_new

    @cached_property
    def _facts(self) -> EncoderFacts:
        """Of a teacher of whom the layout tells nothing; it has no blocks and sees no image."""
        return EncoderFacts(
            embed_dim=0, depth=0, num_heads=(), num_prefix_tokens=0, has_cls_token=False,
            patch_size=1, img_size=(FRAME, FRAME), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0),
            num_classes=self.released.num_classes, architecture={"kind": "unknown"},
            origin={"source": self.teacher},
        )  # fmt: skip

    @cached_property
    def _targets(self) -> ProbTargets:
        return ProbTargets(self.released.num_kept, self._facts, SHOWN)

    def _manifest(self) -> Manifest:
        manifest = Manifest(
            kind=self._targets.kind,
            params=self._targets.params,
            arrays=self._targets.arrays | {VIEW_SEEDS: SEED_SPEC},
            teacher={"facts": stored_facts(self._facts), "precision": "fp32"},
            recipe=released_recipe(),
            num_views=self.released.num_views,
            num_parts=1,
            data={
                "root": self.data.root,
                "num_images": len(self.source),
                "classes": list(self.source.classes),
                "fingerprint": data_fingerprint(self.source),
                "converted_from": str(self.released.root),
                "released_fingerprint": self.released.fingerprint(),
                "keys": self.keys,
            },
            versions=versions(),
        )
        num_bytes = manifest.num_views * manifest.bytes_per_record
        return replace(manifest, num_parts=num_parts_for(len(self.source), num_bytes))

    def _arrays(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays (n, E, *shape) of images that have a record of every view."""
        views = [self._view(epoch, indices) for epoch in range(self.released.num_views)]
        return {name: np.stack([view[name] for view in views], axis=1) for name in views[0]}

    def _view(self, epoch: int, indices: np.ndarray) -> dict[str, np.ndarray]:
        records = self.released.read(epoch, self.places[epoch, indices])
        labels = soft_labels(records, self.released.num_classes)
        encoded = self._targets.codec.encode(labels).numpy()
        return {RECORDS: encoded, VIEW_SEEDS: records.view_seeds.astype(np.int32)}

    def _lack(self, index: int) -> str:
        lacking = np.flatnonzero(self.places[:, index] < 0)
        if len(lacking) == self.released.num_views:
            return "the released set has no record of it"
        return f"the released set has no record of it in epoch {lacking[0]}"

    def _fingerprints(self, indices: np.ndarray, num_parts: int) -> list[dict[str, Any]]:
        chosen = choose_views(len(indices), self.released.num_views, num_parts)
        return view_fingerprints(
            self.source,
            [(int(indices[place]), view) for place, view in chosen],
            lambda index, view: int(
                self.released.read(view, self.places[view, [index]]).view_seeds[0]
            ),
            data=self.data,
            views=ReleasedViews(),
            img_size=FRAME,
        )
