"""What a run says of itself: a live view or plain lines, metrics.jsonl, TensorBoard, wandb."""

import logging
import math
import os
import time
from collections import deque
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from typing_extensions import TypedDict

from limbeck.documents import parse_json, to_json
from limbeck.engine.checkpoint import Run
from limbeck.engine.distributed import Ranks
from limbeck.engine.options import TrainOptions
from limbeck.errors import UserError, require_extra
from limbeck.files import disk_errors, is_utf8, printable, read_file, write_bytes

logger = logging.getLogger("limbeck")

MAX_METRICS_BYTES = 2**30
SECONDS_BETWEEN_LINES = 5.0


class Log:
    """Shows a run while it goes and keeps its records; silent on every rank but 0.

    On a terminal there is a live view, elsewhere a plain line every few seconds and at probes, both
    on ``console`` (standard error if None). ``metrics.jsonl`` gets one line every
    ``train.log_every`` steps (step, epoch, lr, losses of that step, grad_norm, images_per_second,
    data_wait_share), one per probe and one per finding; TensorBoard and wandb get the same numbers.
    A record's step is the number of steps done. Use it in a ``with`` statement; ``start`` comes
    before the first step. Raises UserError where wandb is asked for and not installed.
    """

    def __init__(
        self,
        run: Run,
        train: TrainOptions,
        ranks: Ranks,
        *,
        stage: str,
        total_steps: int,
        console: Console | None = None,
    ) -> None:
        self.run = run
        self.train = train
        self.ranks = ranks
        self.stage = stage
        self.total_steps = total_steps
        self.console = console or Console(stderr=True)
        self.step = self._first_step = 0
        self._last: dict[str, Any] = {}
        self._scores: dict[str, float] = {}
        self._window: deque[tuple[int, float, float]] = deque(maxlen=train.log_every)
        self._started = self._last_line = time.monotonic()
        self._live: Live | None = None
        self._metrics: TextIO | None = None
        self._board: Any = None  # rank 0 opens one in start
        self._wandb: Any = None
        if train.wandb_project is not None and ranks.is_main:
            try:
                import wandb
            except ImportError as error:
                raise require_extra("wandb", "wandb", "train.wandb_project") from error
            self._wandb = wandb

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def start(self, step: int, scores: dict[str, float] | None = None) -> None:
        """Open the files, cut to what was written up to ``step``, and the view.

        ``scores`` are those of the last probe before ``step``.
        """
        if not self.ranks.is_main:
            return
        self.step = self._first_step = step
        self._scores = scores or {}
        file = self.run.dir / "metrics.jsonl"
        cut_metrics(file, step)
        with disk_errors(file):
            self._metrics = file.open("a", encoding="utf-8")
        board_dir = self.run.dir / "tensorboard"
        if is_utf8(str(board_dir)):
            from torch.utils.tensorboard import SummaryWriter  # half a second, of a run alone

            with disk_errors(board_dir):
                # What an earlier, killed process wrote beyond the checkpoint it hides.
                purge_step = step + 1 if step else None
                self._board = SummaryWriter(str(board_dir), purge_step=purge_step)
        else:
            self.note("No TensorBoard files: it takes no folder whose name is no UTF-8.")
        if self._wandb is not None:
            # The config file is as old as the run: a continued run goes on under its old id.
            born = (self.run.dir / "config.json").stat().st_mtime_ns
            self._wandb.init(
                project=self.train.wandb_project,
                dir=str(self.run.dir),
                name=printable(self.run.dir.name),
                id=f"{born:x}",
                resume="allow",
                config=self.run.config,
            )
        self._started = time.monotonic()
        if self.console.is_terminal:
            self._live = Live(get_renderable=self._view, console=self.console, transient=False)
            self._live.start()
        if step:
            self.note(f"{self.stage}: continues at step {step} of {self.total_steps}")

    def add_step(
        self,
        step: int,
        *,
        epoch: float,
        lr: float,
        losses: dict[str, float],
        grad_norm: float,
        num_images: int,
        seconds: float,
        wait_seconds: float,
    ) -> None:
        """One step is done: ``num_images`` over all ranks, its time, and the part spent waiting."""
        if not self.ranks.is_main:
            return
        self.step = step
        self._window.append((num_images, seconds, wait_seconds))
        images, spent, waited = (sum(column) for column in zip(*self._window, strict=True))
        self._last = {
            "step": step,
            "epoch": epoch,
            "lr": lr,
            "losses": losses,
            # JSON knows no infinity; fp16 has one where it skips a step to find its scale.
            "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
            "images_per_second": images / spent if spent else 0.0,
            "data_wait_share": waited / spent if spent else 0.0,
        }
        if step % self.train.log_every == 0 or step == self.total_steps:
            self._write(self._last)
        if time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._show_line()

    def add_probe(self, step: int, *, epoch: float, scores: dict[str, float]) -> None:
        """A probe has measured ``scores`` after ``step``."""
        if not self.ranks.is_main:
            return
        self._scores = scores
        self._write({"step": step, "epoch": epoch, "probe": scores})
        self._show_line()

    def add_finding(self, step: int, text: str) -> None:
        """Something to say about the losses after ``step``, which the records keep."""
        if not self.ranks.is_main:
            return
        self._write({"step": step, "finding": text})
        self.note(text)

    def note(self, text: str) -> None:
        """Show a line of text, above the live view where there is one."""
        if self.ranks.is_main:
            self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def flush(self) -> None:
        """Bring the records to the disk; a checkpoint must never be ahead of them."""
        if self._metrics is not None:
            with disk_errors(self.run.dir / "metrics.jsonl"):
                os.fsync(self._metrics.fileno())
        if self._board is not None:
            with disk_errors(self.run.dir / "tensorboard"):
                self._board.flush()

    def close(self) -> None:
        """Close the view and the files; without effect when closed."""
        if self._live is not None:
            self._live.stop()
        if self._metrics is not None:
            with suppress(OSError):  # every line was flushed: a full disk has been said already
                self._metrics.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None and self._wandb.run is not None:
            self._wandb.finish()
        self._live = self._metrics = self._board = None

    def _write(self, record: dict[str, Any]) -> None:
        if self._metrics is None:
            raise RuntimeError("Log.start comes before the first record")
        with disk_errors(self.run.dir / "metrics.jsonl"):
            self._metrics.write(to_json(_finite(record), indent=None) + "\n")
            self._metrics.flush()
        scalars = _scalars(record)
        if self._board is not None:
            with disk_errors(self.run.dir / "tensorboard"):
                for name, value in scalars.items():
                    self._board.add_scalar(name, value, record["step"])
        if self._wandb is not None and scalars:
            self._wandb.log(scalars, step=record["step"])

    def _show_line(self) -> None:
        if self._live is None:
            self._last_line = time.monotonic()
            self.note("  ".join([self.stage, *self._progress(), *self._numbers()]))

    def _progress(self) -> list[str]:
        done = self.step - self._first_step
        eta = "unknown"
        if done:
            each = (time.monotonic() - self._started) / done
            eta = str(timedelta(seconds=round(each * (self.total_steps - self.step))))
        percent = 100 * self.step / self.total_steps
        return [f"step {self.step}/{self.total_steps} ({percent:.0f} %)", f"ETA {eta}"]

    def _numbers(self) -> list[str]:
        texts = []
        if self._last:
            losses = self._last["losses"]
            parts = ", ".join(f"{name} {losses[name]:.4g}" for name in losses if name != "total")
            texts = [
                f"{self._last['images_per_second']:.4g} images/s",
                f"data wait {100 * self._last['data_wait_share']:.0f} %",
                f"loss {losses['total']:.4g}" + (f" ({parts})" if parts else ""),
                f"lr {self._last['lr']:.3g}",
            ]
        # Those with a stroke in their names, such as of a class, are for the curves.
        if whole := {name: value for name, value in self._scores.items() if "/" not in name}:
            scores = ", ".join(f"{name} {value:.4g}" for name, value in whole.items())
            texts.append(f"probe {scores}")
        return texts

    def _view(self) -> RenderableType:
        bar = ProgressBar(total=self.total_steps, completed=self.step, width=40)
        line = Table.grid(padding=(0, 1))
        line.add_row(self.stage, bar, *self._progress())
        return Group(line, Text("  ".join(self._numbers())))


def _finite(value: Any) -> Any:
    """Plain data with None for what JSON does not have: infinity, and what is no number."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cut_metrics(file: Path, step: int) -> None:
    """Drop the records beyond ``step``, a last line that a crash cut short, and damaged ones."""
    if not file.exists():
        return
    with disk_errors(file):
        lines = read_file(file, MAX_METRICS_BYTES).splitlines(keepends=True)
    kept, num_damaged = [], 0
    for line in lines:
        record = _read_record(line, _Step)
        if record is not None and record["step"] <= step:
            kept.append(line)
        num_damaged += record is None and line is not lines[-1]
    if num_damaged:
        logger.warning("%s: %d damaged lines are dropped.", file, num_damaged)
    if kept != lines:
        write_bytes(file, b"".join(kept))


def read_metrics(file: Path, kind: Any) -> list[Any]:
    """The records of a run that are of a kind; what is damaged is left out."""
    try:
        lines = read_file(file, MAX_METRICS_BYTES).splitlines(keepends=True)
    except OSError:
        return []
    records = [_read_record(line, kind) for line in lines]
    return [record for record in records if record is not None]


class _Step(TypedDict):
    step: int


def _read_record(line: bytes, kind: Any) -> Any:
    """A line of metrics.jsonl, or None of one that is damaged or was cut short by a crash."""
    if not line.endswith(b"\n"):
        return None
    try:
        return parse_json(line, kind)
    except UserError:
        return None


def _scalars(record: dict[str, Any]) -> dict[str, float]:
    """A record's numbers by name, in TensorBoard's words: group/name."""
    names = ("lr", "grad_norm", "images_per_second", "data_wait_share")
    train = {name: record[name] for name in names if record.get(name) is not None}
    groups = {"loss": record.get("losses", {}), "probe": record.get("probe", {}), "train": train}
    return {f"{group}/{name}": x for group, own in groups.items() for name, x in own.items()}
