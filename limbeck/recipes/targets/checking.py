"""``limbeck store-targets --check``: is a store whole, of these images, and what the teacher says?

The cheap part reads every byte once and makes some views again; the dear one lets the teacher
answer a sample of views anew.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from limbeck.data.options import DataOptions, ReleasedViews, ViewOptions
from limbeck.data.source import Source
from limbeck.data.target_store.manifest import Manifest, differences
from limbeck.data.target_store.reader import MISSING, SKIPPED, TargetReader
from limbeck.data.view_batches import view_batches
from limbeck.documents import to_json
from limbeck.files import write_text
from limbeck.methods.method import Method
from limbeck.methods.targets import StoredTeacher, targets_class
from limbeck.methods.teacher import Teacher
from limbeck.models.encoder import EncoderFacts
from limbeck.recipes.targets.reading import drift, released_recipe, remade_fingerprints

log = logging.getLogger("limbeck")

NUM_NAMED = 10
NAN = float("nan")
LARGEST_RATIO = 0.5  # of the distance to one's own record to that of another image
MOST_BAD = 0.01  # of the sampled answers; more than that is no outlier at a rounding's edge


@dataclass(frozen=True)
class Checked:
    """What a check found; ``problems`` are what makes it fail.

    ``num_images`` of the data, ``num_records`` of the store, ``num_unused`` of these without an
    image any more. ``missing`` keys. ``distances`` of the answers
    that were given anew to the stored ones, 0 the same.
    """

    address: str
    num_images: int
    num_records: int
    num_unused: int
    missing: tuple[str, ...]
    skipped: dict[str, str]
    num_fingerprints: int = 0
    distances: tuple[float, ...] = ()
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Check:
    """A store beside all that its records should follow from."""

    address: str
    source: Source
    data: DataOptions
    views: ViewOptions
    student: EncoderFacts
    method: Method
    teacher: Teacher
    wanted: Manifest
    num_answers: int
    max_distance: float | None
    """That of the kind of target and the teacher's precision if not given."""
    batch_size: int

    def run(self) -> Checked:
        """Everything; raises UserError only where there is no store to look into."""
        reader = TargetReader(self.address, tolerant=True)
        problems = list(reader.problems)
        keys = [self.source.key(index) for index in range(len(self.source))]
        rows = reader.locate(keys)
        missing = tuple(keys[index] for index in np.flatnonzero(rows == MISSING))
        file = self._list_missing(missing)
        if missing:
            problems.append(
                f"{len(missing):,} of {len(keys):,} images have no record: {_some(missing)}; all "
                f"are listed in {file}. Fill them in with the same command and --resume in place "
                "of --check."
            )
        num_fingerprints, changed = self._compare_pixels(reader)
        problems += changed
        distances: list[float] = []
        if differing := differences(reader.manifest, self.wanted):
            problems.append(
                f"The store was made otherwise: {'; '.join(differing)}. Check it with the options "
                "that it was made with."
            )
        else:
            named = self._sample(rows)
            compared = list(self._distances(reader, rows, named))
            distances = [own for own, _ in compared]
            problems += self._judge(named, keys, distances)
            problems += _judge_nearness(np.array(compared).reshape(-1, 2))
        reasons = {k: why for each in reader.records.values() for k, why in each.skipped.items()}
        return Checked(
            address=self.address, num_images=len(keys), num_records=len(reader),
            num_unused=len(reader) - len(np.unique(rows[rows >= 0])), missing=missing,
            skipped={keys[i]: reasons[keys[i]] for i in np.flatnonzero(rows == SKIPPED)},
            num_fingerprints=num_fingerprints, distances=tuple(distances), problems=problems,
        )  # fmt: skip

    def _list_missing(self, missing: tuple[str, ...]) -> Path | None:
        """One JSON string per line, because a file name may hold a line break."""
        if not missing:
            return None
        name = f"{self.address.rstrip('/').rsplit('/', 1)[-1]}.missing.jsonl"
        file = Path(name) if "://" in self.address else Path(self.address).with_name(name)
        write_text(file, "".join(to_json(key, indent=None) + "\n" for key in missing))
        return file

    def _compare_pixels(self, reader: TargetReader) -> tuple[int, list[str]]:
        is_released = reader.manifest.recipe == released_recipe()
        views = ReleasedViews() if is_released else self.views
        made = list(remade_fingerprints(reader, self.source, self.data, views, limit=None))
        changed = [
            f"View {view} of {key} has other pixels than when its answer was stored: another image "
            f"of that name, other view options, or another library ({drift(reader.manifest)})."
            for key, view, was, now in made
            if was != now
        ]
        return len(made), _shortened(changed, "views have other pixels")

    def _sample(self, rows: np.ndarray) -> list[tuple[int, int]]:
        """(index, view) of some records, at random but always the same, in groups of one view."""
        found = np.flatnonzero(rows >= 0)
        num_views = self.wanted.num_views
        rng = np.random.default_rng(0)
        count = min(self.num_answers, len(found) * num_views)
        chosen = rng.choice(len(found) * num_views, count, replace=False)
        return sorted(
            ((int(found[each // num_views]), int(each % num_views)) for each in chosen),
            key=lambda pair: pair[::-1],
        )

    @torch.no_grad()
    def _distances(
        self, reader: TargetReader, rows: np.ndarray, named: list[tuple[int, int]]
    ) -> Iterator[tuple[float, float]]:
        """Of the sampled answers, in their order, to their records and to those of other images.

        NaN for an image that can't be read any more, and where no other image is at hand.
        """
        device = self.teacher.device
        targets = StoredTeacher(reader.manifest, reader.weights(), device).targets
        requests = list(_requests(named, self.batch_size))
        batches = view_batches(
            self.source, requests, data=self.data, views=self.views,
            img_size=self.student.img_size[0], seed=reader.manifest.recipe["seed"], world_size=1,
            device=device, erase_mean=self.student.mean, erase_std=self.student.std,
        )  # fmt: skip
        for (views, indices), (batch, skipped) in zip(requests, batches, strict=True):
            lost = {key for key, _ in skipped}
            kept = [index for index in indices if self.source.key(index) not in lost]
            found: dict[int, tuple[float, float]] = {}
            if kept:
                answer = self.teacher.answer(self.method.prepare(batch), targets.taps)
                stored = {
                    name: torch.from_numpy(array).to(device)
                    for name, array in reader.read(rows[kept], views.start).items()
                }
                fresh = targets.encode(answer)
                own = targets.distance(stored, fresh).tolist()
                shifted = {name: array.roll(1, 0) for name, array in stored.items()}
                others = targets.distance(shifted, fresh).tolist()
                if len(kept) == 1:
                    others = [NAN]
                found = dict(zip(kept, zip(own, others, strict=True), strict=True))
            yield from (found.get(index, (NAN, NAN)) for index in indices)

    def _judge(
        self, named: list[tuple[int, int]], keys: list[str], distances: list[float]
    ) -> list[str]:
        usual = targets_class(self.wanted.kind).usual_distance[self.teacher.precision]
        limit = self.max_distance or usual
        found = zip(distances, named, strict=True)
        bad = sorted((each for each in found if each[0] > limit), reverse=True)
        if len(bad) <= MOST_BAD * len(named):
            return []
        worst = [f"view {view} of {keys[i]} ({distance:.3g})" for distance, (i, view) in bad]
        return [
            f"{len(bad):,} of {len(named):,} answers are further from the stored ones than "
            f"{limit:g}: {_some(worst)}. The teacher, its precision or the images are "
            "not those of the store; write it anew, or name what it was made with."
        ]


def _judge_nearness(compared: np.ndarray) -> list[str]:
    """Whether answers (n, 2) are nearer to their own records than to those of other images.

    A teacher that says nearly the same of every image is within any limit of any record.
    """
    compared = compared[~np.isnan(compared).any(axis=1)]
    if not len(compared):
        return []
    own, others = np.median(compared, axis=0)
    if own <= LARGEST_RATIO * others:
        return []
    return [
        f"The answers are hardly nearer to their own records (median distance {own:.2g}) than to "
        f"those of other images ({others:.2g}). The teacher or the images are not those of the "
        "store; write it anew, or name what it was made with."
    ]


def report(checked: Checked) -> str:
    """The findings for people."""
    distances = np.array(checked.distances)
    distances = distances[~np.isnan(distances)]
    answers = "no answer was compared"
    if len(distances):
        answers = (
            f"{len(distances):,} answers given anew, median distance {np.median(distances):.2g}, "
            f"largest {distances.max():.2g}"
        )
    lines = [
        checked.address,
        f"  images      {checked.num_images:,}, of which {len(checked.missing):,} have no record "
        f"and {len(checked.skipped):,} could not be read when it was made",
        f"  records     of {checked.num_records:,} images, {checked.num_unused:,} of them have no "
        "image any more",
        f"  pixels      {checked.num_fingerprints:,} views made again",
        f"  teacher     {answers}",
    ]
    skipped = [f"{key} ({reason})" for key, reason in checked.skipped.items()]
    if skipped:
        lines.append(f"  not read    {_some(skipped)}")
    lines += [f"  PROBLEM     {problem}" for problem in checked.problems]
    return "\n".join(lines if checked.problems else [*lines, "  The store is good."])


def _requests(named: list[tuple[int, int]], batch_size: int) -> Iterator[tuple[range, list[int]]]:
    """Groups of one view each, at most ``batch_size`` images."""
    for view in sorted({view for _, view in named}):
        indices = [index for index, of in named if of == view]
        for at in range(0, len(indices), batch_size):
            yield range(view, view + 1), indices[at : at + batch_size]


def _some(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - NUM_NAMED:,} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more


def _shortened(problems: list[str], what: str) -> list[str]:
    if len(problems) <= NUM_NAMED:
        return problems
    return [*problems[:NUM_NAMED], f"{len(problems):,} {what} in all."]
