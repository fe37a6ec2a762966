"""A tiny module, endless fake batches, and a run of both, also as a program:

python -m tests.engine.fakes OUT JSON    (the keyword arguments of ``train``)
"""

import io
import json
import time
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from limbeck.engine.checkpoint import open_run
from limbeck.engine.distributed import Ranks, ranks_session
from limbeck.engine.health import Health
from limbeck.engine.log import Log
from limbeck.engine.loop import fit
from limbeck.engine.options import OptimOptions, TrainOptions
from limbeck.records import Batch, Losses

TIMINGS = ("images_per_second", "data_wait_share")


class TinyModule(nn.Module):
    """Two layers with drop path between, a buffer, and a tail that no loss depends on."""

    def __init__(self, drop_path: float = 0.0, has_tail: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(12, 16)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 3)
        self.tail = nn.Linear(16, 16) if has_tail else None
        self.drop_path = drop_path
        self.register_buffer("num_forwards", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch) -> Losses:
        self.num_forwards += 1
        x = self.stem(batch.images.flatten(1))
        branch = self.norm(x)
        if self.training and self.drop_path:
            keep = 1 - self.drop_path
            branch = branch * (torch.rand(len(x), 1) < keep) / keep
        x = self.head(x + branch)
        if self.tail is not None:
            self.tail(branch)
        near = (x - batch.teacher_images.flatten(1)[:, :3]).float().square().mean()
        small = x.float().abs().mean()
        return Losses(near + 0.1 * small, {"near": near.detach(), "small": small.detach()})


def fake_batches(size: int, accumulate: int = 1, ranks: Ranks = Ranks(), bad_step: int = -1):  # noqa: B008
    """Micro-batches of this rank; a step's global batch depends on the step alone."""

    def batches(step: int):
        while True:
            generator = torch.Generator().manual_seed(step)
            images = torch.rand(size, 3, 2, 2, generator=generator)
            if step == bad_step:
                images[1] = torch.nan
            each = size // (accumulate * ranks.world_size)
            for micro in range(accumulate):
                start = (micro * ranks.world_size + ranks.rank) * each
                part = images[start : start + each]
                keys = tuple(f"{step}/{start + index}" for index in range(each))
                yield Batch(part, part, None, keys, torch.arange(each))
            step += 1

    return batches


def fake_probe(module: nn.Module, step: int) -> dict[str, float]:
    """Depends on the weights and on random state; leaves the module in evaluation mode."""
    module.eval()
    return {"score": (module.head.weight.abs().sum() + torch.rand(())).item()}


def train(
    out: Path,
    *,
    total_steps: int = 12,
    size: int = 8,
    drop_path: float = 0.0,
    optim: dict | None = None,
    options: dict | None = None,
    batches=None,
    bad_step: int = -1,
    probes=fake_probe,
    step_seconds: float = 0.0,
    console: Console | None = None,
    overwrite: bool = False,
    after_step=None,
    module: nn.Module | None = None,
    health: Health | None = None,
):
    """Run or continue a run of the tiny module on the CPU; returns (module, FitResult)."""
    optim_options = OptimOptions(**{"base_lr": 0.3, "warmup_epochs": 1.0, **(optim or {})})
    train_options = TrainOptions(
        **{
            "epochs": total_steps / 4,
            "global_batch_size": size,
            "precision": "fp32",
            "save_every": 5,
            "log_every": 2,
            "probe_every": 3,
            **(options or {}),
        }
    )

    def slowed(stream, step):
        for number, batch in enumerate(stream, step):
            # Short of its end it waits to be killed, however late that comes.
            time.sleep(step_seconds if number < total_steps - 5 else 600)
            yield batch

    with ranks_session("cpu") as ranks:
        module = module or TinyModule(drop_path)
        config = {"optim": vars(optim_options), "train": vars(train_options)}
        run = open_run(out, config, {"data": "fake"}, overwrite=overwrite)
        accumulate = train_options.accumulate_steps
        batches = batches or fake_batches(size, accumulate, ranks, bad_step)
        with Log(
            run,
            train_options,
            ranks,
            stage="fake",
            total_steps=total_steps,
            console=console or Console(file=io.StringIO()),
        ) as log:
            result = fit(
                module,
                lambda step: slowed(batches(step), step) if step_seconds else batches(step),
                total_steps=total_steps,
                steps_per_epoch=4,
                optim=optim_options,
                train=train_options,
                run=run,
                ranks=ranks,
                log=log,
                seed=7,
                probes=probes,
                after_step=after_step,
                health=health,
            )
    return module, result


def read_metrics(out: Path) -> list[dict]:
    """The records of a run without their timings."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in TIMINGS} for record in records]


def assert_same_weights(one: nn.Module, other: nn.Module, **tolerances) -> None:
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(
            tensor, other.state_dict()[name], msg=lambda m, n=name: f"{n}: {m}", **tolerances
        )
