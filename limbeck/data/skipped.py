"""The list of images that could not be used: one file for all ranks and restarts of a run."""

import logging
from collections.abc import Sequence
from pathlib import Path

from typing_extensions import TypedDict

from limbeck.documents import MAX_BYTES, parse_json, to_json
from limbeck.errors import RunError, UserError
from limbeck.files import printable, read_file, reason_of

log = logging.getLogger("limbeck")

NUM_LISTED = 5  # bad files named in an error; the rest stands in skipped.jsonl


class _Entry(TypedDict):
    key: str
    reason: str


class SkippedLog:
    """The images that could not be used, in ``file`` as JSON lines with "key" and "reason".

    What the file already holds counts too: of an earlier part of the run, or of other ranks.
    ``file`` None keeps the list in memory only.
    """

    def __init__(self, file: Path | None, num_images: int, max_bad_ratio: float) -> None:
        self.file = file
        self.num_images = num_images
        self.max_bad_ratio = max_bad_ratio
        self.reasons: dict[str, str] = {}
        self._read()

    @property
    def max_bad(self) -> int:
        """How many bad images are still accepted."""
        return int(self.max_bad_ratio * self.num_images)

    def add(self, skipped: Sequence[tuple[str, str]]) -> None:
        """Record (key, reason) pairs; raises RunError once too large a part is bad."""
        if not any(key not in self.reasons for key, _ in skipped):
            return
        self._read()
        lines = []
        for key, reason in skipped:
            if key not in self.reasons:
                self.reasons[key] = reason
                lines.append(to_json({"key": key, "reason": reason}, indent=None) + "\n")
                log.warning("Skipped the image %s: %s.", printable(key), reason)
        self._append("".join(lines))
        self.check()

    def check(self) -> None:
        """Raise RunError if too large a part of the images is bad."""
        if len(self.reasons) <= self.max_bad:
            return
        first = list(self.reasons.items())[:NUM_LISTED]
        listed = [f"{printable(key)} ({reason})" for key, reason in first]
        where = f"; all are listed in {self.file}" if self.file else ""
        raise RunError(
            f"{len(self.reasons)} of {self.num_images} images can't be used, more than "
            f"--data.max-bad-ratio {self.max_bad_ratio} allows: {', '.join(listed)}{where}. "
            "Repair or remove them, or allow a larger part; `limbeck doctor` lists all bad files "
            "beforehand."
        )

    def summary(self) -> str:
        """How many images were skipped, in one sentence."""
        if not self.reasons:
            return "No image had to be skipped."
        where = f"; they are listed in {self.file}" if self.file else ""
        return f"{len(self.reasons)} images could not be used and were skipped{where}."

    def _read(self) -> None:
        if self.file is None or not self.file.exists():
            return
        try:
            text = read_file(self.file, MAX_BYTES).decode("utf-8", "replace")
        except OSError as error:
            raise RunError(f"Can't read {self.file}: {reason_of(error)}.") from error
        for line in text.split("\n"):  # a name may hold other breaks of lines
            try:
                entry = parse_json(line, _Entry, str(self.file))
            except UserError:
                continue  # A line that a kill cut short; the image will be met again.
            self.reasons.setdefault(entry["key"], entry["reason"])

    def _append(self, lines: str) -> None:
        if self.file is None:
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            # One write in append mode: lines of several ranks never mix. The line break before
            # it ends a line that a kill cut short; empty lines are passed over in reading.
            with open(self.file, "ab", buffering=0) as file:
                torn = file.tell() > 0 and not self.file.read_bytes().endswith(b"\n")
                file.write((b"\n" if torn else b"") + lines.encode())
        except OSError as error:
            raise RunError(f"Can't write {self.file}: {reason_of(error)}.") from error
