"""The work of storing targets: which images are left, what it will cost, part by part."""

import logging
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, cycle, islice
from statistics import median
from types import FrameType
from typing import Any

import numpy as np
import torch

from limbeck.data.loader import workers_for
from limbeck.data.options import DataOptions, ViewOptions
from limbeck.data.skipped import SkippedLog
from limbeck.data.source import Source
from limbeck.data.target_store.parts import choose_views, key_hashes
from limbeck.data.target_store.writer import StoreWriter
from limbeck.data.view_batches import view_batches, view_fingerprints
from limbeck.data.views import view_seed
from limbeck.engine.distributed import Ranks
from limbeck.engine.loop import Interrupted
from limbeck.methods.method import Method
from limbeck.methods.targets import Targets
from limbeck.methods.teacher import Teacher
from limbeck.models.encoder import EncoderFacts
from limbeck.records import Batch

log = logging.getLogger("limbeck")

KEY_BYTES = 8  # the hash of an image's key
NUM_SAMPLED = 3  # batches that a forecast is made of
REPORT_EVERY = 30.0  # seconds

Request = tuple[range, list[int]]
"""View numbers, and indices of images."""


@contextmanager
def stop_explained() -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM, which end the work at once, into Interrupted with what is kept."""
    numbers = [signal.SIGINT]  # of the signal that came last

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        numbers.append(signal.Signals(number))
        # No Exception: what reads images or remote files takes those for its own.
        raise KeyboardInterrupt

    # Python lets only the main thread set handlers.
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if is_main else None
    try:
        yield
    except KeyboardInterrupt as error:
        name = "Ctrl-C" if numbers[-1] == signal.SIGINT else numbers[-1].name
        raise Interrupted(
            f"Stopped by {name}; finished parts of the store are kept, run the same command again "
            "to go on.",
            numbers[-1],
        ) from error
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@dataclass(frozen=True)
class Forecast:
    """What storing costs, from a measured sample: bytes, seconds, and epochs until it pays back.

    ``seconds`` for the images that are left, with this many processes. ``epochs``: of training, of
    one student or of several, after which running the teacher each time would have cost more.
    """

    num_views: int
    num_bytes: int
    seconds: float
    epochs: float

    def sentence(self) -> str:
        """For people."""
        minutes = self.seconds / 60
        took = f"{minutes / 60:.1f} hours" if minutes > 90 else f"{max(minutes, 0.1):.1f} minutes"
        return (
            f"{self.num_views:,} views to store: about {self.num_bytes / 2**20:,.1f} MiB and "
            f"{took}; it pays back after {self.epochs:.2g} epochs of training, of one student or "
            "of several."
        )


@dataclass
class Job:
    """Runs the teacher over the views of the images that a store lacks."""

    source: Source
    data: DataOptions
    batch_size: int
    views: ViewOptions
    student: EncoderFacts
    method: Method
    teacher: Teacher
    targets: Targets
    writer: StoreWriter
    ranks: Ranks
    skipped: SkippedLog

    def __post_init__(self) -> None:
        self.keys = [self.source.key(index) for index in range(len(self.source))]
        self.seed = self.writer.manifest.recipe["seed"]

    def left(self, tries_skipped: bool = False) -> dict[int, np.ndarray]:
        """The indices of the images that have no record yet, by part.

        Those that could not be read before count only with ``tries_skipped``.
        """
        return self.writer.missing(self.keys, retry_skipped=tries_skipped)

    def requests(self, indices: np.ndarray) -> Iterator[Request]:
        """What to load, ``batch_size`` views at once at most; decoded once where they fit."""
        num_views, size = self.writer.manifest.num_views, self.batch_size
        at_once = max(1, size // num_views)
        for start in range(0, len(indices), at_once):
            chunk = indices[start : start + at_once].tolist()
            for first in range(0, num_views, size):
                yield range(first, min(first + size, num_views)), chunk

    def forecast(self, left: dict[int, np.ndarray]) -> Forecast:
        """Make a few batches and answer them in this process; the first of them warms up."""
        some = np.concatenate(list(left.values()))[: NUM_SAMPLED * self.batch_size]
        requests = list(islice(cycle(self.requests(some)), NUM_SAMPLED))
        making, answering = [], []
        batches = self._batches(requests, num_workers=0)
        for _ in requests:
            start = time.perf_counter()
            batch, _ = next(batches)
            made = time.perf_counter()
            if batch.keys:
                self._answer(batch)
                making.append((made - start) / len(batch.keys))
                answering.append((time.perf_counter() - made) / len(batch.keys))
        manifest = self.writer.manifest
        num_images = sum(map(len, left.values()))
        num_views = num_images * manifest.num_views
        view, answer = (median(times[1:] or times or [0.0]) for times in (making, answering))
        num_workers = workers_for(self.data, self.ranks.world_size)
        seconds = max(view / num_workers, answer) if num_workers else view + answer
        return Forecast(
            num_views=num_views,
            num_bytes=num_views * manifest.bytes_per_record
            + num_views // manifest.num_views * KEY_BYTES,
            seconds=num_views * seconds / self.ranks.world_size,
            epochs=manifest.num_views * seconds / answer if answer else 0.0,
        )

    def write(self, left: dict[int, np.ndarray]) -> int:
        """Write what is left, each rank its own parts; returns the images that this rank stored."""
        own = [part for part in sorted(left) if part % self.ranks.world_size == self.ranks.rank]
        # One stream over all parts, made as it is asked for: workers need not wait between parts,
        # and millions of images would be many requests.
        batches = self._batches(chain.from_iterable(self.requests(left[part]) for part in own))
        total, done, told = sum(len(left[part]) for part in own), 0, time.monotonic()
        num_stored = 0
        for part in own:
            place = {int(index): row for row, index in enumerate(left[part])}
            arrays = self._empty(len(place))
            reasons: dict[str, str] = {}
            for views, indices in self.requests(left[part]):
                batch, skipped = next(batches)
                self.skipped.add(skipped)
                reasons |= dict(skipped)
                kept = [index for index in indices if self.keys[index] not in reasons]
                if kept:
                    rows = [place[index] for index in kept]
                    for name, value in self._answer(batch).items():
                        shaped = value.reshape(len(rows), len(views), *value.shape[1:])
                        arrays[name][rows, views.start : views.stop] = shaped
                if views.stop == self.writer.manifest.num_views:
                    done += len(indices)
                if time.monotonic() - told > REPORT_EVERY:
                    told = time.monotonic()
                    log.info("%s of %s images.", f"{done:,}", f"{total:,}")
            is_good = np.array([self.keys[i] not in reasons for i in left[part]], dtype=bool)
            good = left[part][is_good]
            self.writer.write_part(
                part,
                key_hashes(self.keys[index] for index in good),
                {name: array[is_good] for name, array in arrays.items()},
                skipped=reasons,
                fingerprints=self._fingerprints(good),
            )
            num_stored += len(good)
        self.writer.check_there(own)
        return num_stored

    def _empty(self, num_images: int) -> dict[str, np.ndarray]:
        manifest = self.writer.manifest
        return {
            name: np.empty((num_images, manifest.num_views, *spec.shape), spec.dtype)
            for name, spec in manifest.arrays.items()
        }

    @torch.no_grad()
    def _answer(self, batch: Batch) -> dict[str, np.ndarray]:
        answer = self.teacher.answer(self.method.prepare(batch), self.targets.taps)
        return {name: array.cpu().numpy() for name, array in self.targets.encode(answer).items()}

    def _batches(
        self, requests: Iterable[Request], num_workers: int | None = None
    ) -> Iterator[tuple[Batch, tuple[tuple[str, str], ...]]]:
        data = self.data if num_workers is None else replace(self.data, num_workers=num_workers)
        return view_batches(
            self.source, requests, data=data, views=self.views, img_size=self.student.img_size[0],
            seed=self.seed, world_size=self.ranks.world_size, device=self.ranks.device,
            erase_mean=self.student.mean, erase_std=self.student.std,
        )  # fmt: skip

    def _fingerprints(self, indices: np.ndarray) -> list[dict[str, Any]]:
        manifest = self.writer.manifest
        chosen = choose_views(len(indices), manifest.num_views, manifest.num_parts)
        return view_fingerprints(
            self.source,
            [(int(indices[place]), view) for place, view in chosen],
            lambda index, view: view_seed(self.seed, view, self.keys[index]),
            data=self.data,
            views=self.views,
            img_size=self.student.img_size[0],
        )
