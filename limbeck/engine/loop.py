"""The loop: one function that trains any module which turns a batch into losses.

It knows neither methods nor tasks, has no callbacks and no state of its own. Everything random in a
step follows from (seed, step, micro-batch, rank), so a continued run needs no random state: on the
CPU it ends with the same weights, bit for bit, as one that was never stopped.
"""

import logging
import math
import platform
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, NotRequired

import numpy as np
import pydantic
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from typing_extensions import TypedDict

from limbeck.documents import fit as fit_document
from limbeck.documents import write_json
from limbeck.engine.best import Best
from limbeck.engine.checkpoint import Run, load_checkpoint, save_checkpoint
from limbeck.engine.distributed import Ranks, gather, on_main_rank, wrap
from limbeck.engine.health import Health, Watch
from limbeck.engine.log import Log
from limbeck.engine.machine import DTYPES
from limbeck.engine.optim import Average, build_optimizer, set_lr
from limbeck.engine.options import OptimOptions, TrainOptions
from limbeck.engine.signals import StopSignals
from limbeck.errors import NotFiniteError, RunError, UserError
from limbeck.ops.ranks import mean_over_ranks
from limbeck.ops.schedules import cosine_lr, peak_lr, poly_lr, step_lr
from limbeck.records import Batch

logger = logging.getLogger("limbeck")

_SCHEDULES: dict[str, Callable[..., float]] = {
    "cosine": cosine_lr,
    "poly": poly_lr,
    "steps": step_lr,
}


class Interrupted(RunError):
    """Asked to stop by a signal, after saving; exits with 128 + the signal's number."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


@dataclass(frozen=True)
class FitResult:
    """The end of a run: steps done, the last step's losses, the last probe's scores, and what the
    watch over its loss has found (``Watch.record``)."""

    step: int
    losses: dict[str, float]
    probes: dict[str, float]
    health: dict[str, Any] = field(default_factory=dict)


@dataclass
class _State:
    """All that changes during a run; what of it is saved, ``load`` finds again."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: Average | None
    watch: Watch
    best: Best
    step: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)

    def save(self, run: Run) -> None:
        state = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "step": self.step,
            "losses": self.losses,
            "scores": self.scores,
            "watch": self.watch.state_dict(),
            "best": self.best.state_dict(),
            "versions": {"torch": str(torch.__version__), "python": platform.python_version()},
        }
        on_main_rank(lambda: save_checkpoint(run, state))

    def load(self, run: Run) -> None:
        loaded = on_main_rank(lambda: load_checkpoint(run))
        if loaded is None:
            return
        try:
            state: _Saved = fit_document(loaded, _Saved, "it")
            self.module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            if self.average:
                self.average.load_state_dict(state["average"] or {})
        except Exception as error:  # torch's have no common class
            raise RunError(
                f"{run.checkpoint_file} is not of this run ({str(error).splitlines()[0]}). Restore "
                "it from a copy, or delete it to start afresh."
            ) from error
        if "watch" in state:  # not in the checkpoints of earlier versions
            self.watch.load_state_dict(dict(state["watch"]))
        if "best" in state:  # likewise
            self.best.load_state_dict(dict(state["best"]))
        self.step, self.losses, self.scores = state["step"], state["losses"], state["scores"]
        if name := self._not_finite():
            raise RunError(
                f"{run.checkpoint_file} holds NaN or infinity ({name}), of which nothing more is "
                "learnt. Restore it from a copy, or delete it to start afresh."
            )

    def _not_finite(self) -> str | None:
        """A parameter of which the weight, the average or the optimiser's state is not finite."""
        for name, parameter in self.module.named_parameters():
            tensors = [parameter, *self.optimizer.state.get(parameter, {}).values()]
            if self.average and name in self.average.averages:
                tensors.append(self.average.averages[name])
            if not all(t.isfinite().all() for t in tensors if isinstance(t, Tensor)):
                return name
        return None


class _Watched(TypedDict):
    sums: list[float]
    shares: list[float]
    plateau_step: int | None


class _Best(TypedDict):
    scores: dict[str, float]
    weights: dict[str, Any]
    step: int
    num_worse: int


class _Saved(TypedDict):
    """A checkpoint, as ``_State.save`` writes it."""

    module: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    average: dict[str, Any] | None
    step: Annotated[int, pydantic.Field(ge=0)]
    losses: dict[str, float]
    scores: dict[str, float]
    watch: NotRequired[_Watched]
    best: NotRequired[_Best]


def fit(
    module: nn.Module,
    batches: Callable[[int], Iterator[Batch]],
    *,
    total_steps: int,
    steps_per_epoch: int,
    optim: OptimOptions,
    train: TrainOptions,
    run: Run,
    ranks: Ranks,
    log: Log,
    seed: int,
    layer_id: Callable[[str], int] | None = None,
    num_layers: int | None = None,
    probes: Callable[[nn.Module, int], dict[str, float]] | None = None,
    after_step: Callable[[int, int], None] | None = None,
    health: Health | None = None,
    measure: str = "",
) -> FitResult:
    """Train ``module`` (on ``ranks.device``) to ``total_steps``, from the run's checkpoint if any.

    ``module(batch)`` gives Losses. ``batches(step)`` iterates over this rank's micro-batches from
    a step on, ``train.accumulate_steps`` of them per step, all of one size. Steps are optimiser
    steps. ``probes(module, step)`` is called on rank 0 only, with the averaged weights
    where there are any, which are also what the module ends with. ``layer_id`` and ``num_layers``
    are for ``optim.layer_decay``. ``after_step(steps done, total_steps)`` is called on every rank
    after each step, to change what of the module is not trained. ``health``: how low the losses
    should get, where they state ``at_zero``; the log says where they don't. ``measure``: the score
    that ``train.patience`` goes by.

    Raises UserError for options that do not fit, RunError for a loss or gradient that is not
    finite (details in ``nonfinite.json``) and for a full disk, Interrupted after SIGTERM or Ctrl-C.
    The last good checkpoint stays in each case.
    """
    warmup_epochs = optim.warmup_for(train.epochs)
    _check(train, ranks)
    if train.patience and not (probes and measure):
        raise UserError("train.patience needs a task that is scored as it trains; leave it out.")
    optimizer = build_optimizer(module, optim, layer_id, num_layers)
    scaler = torch.amp.GradScaler(ranks.device.type, enabled=train.precision == "fp16")
    average = Average(module, train.ema_decay) if train.ema_decay else None
    watch = Watch(health, total_steps, round(warmup_epochs * steps_per_epoch))
    best = Best(measure, train.patience)
    state = _State(module, optimizer, scaler, average, watch, best)
    state.load(run)
    probe_every = train.probe_every or math.ceil(total_steps / 10)
    peak = peak_lr(optim.base_lr, train.global_batch_size)

    if state.step >= total_steps or best.is_over:
        logger.info("%s: all %d steps are done already.", run.dir, state.step)
        return _result(state)
    if train.compile:
        module.compile()  # in place, so that the names of the weights stay
    model = wrap(module, ranks)
    log.start(state.step, state.scores)
    own: dict[str, Any] = {"is_shifted": optim.cosine_from == "warmup-end"}
    if optim.schedule == "steps":
        own = {"drops": optim.drop_at}
    lr_at = partial(
        _SCHEDULES[optim.schedule], steps_per_epoch=steps_per_epoch, epochs=train.epochs,
        warmup_epochs=warmup_epochs, peak_lr=peak, min_lr=optim.min_lr, warmup_lr=optim.warmup_lr,
        **own,
    )  # fmt: skip
    with StopSignals(log) as stop:
        stream = batches(state.step)
        while state.step < total_steps and not best.is_over:
            started = time.perf_counter()
            model.train()
            lr = lr_at(state.step)
            set_lr(optimizer, lr)
            done = _backward(model, stream, scaler, train, ranks, seed=seed, step=state.step)
            norm = _clip(optimizer, scaler, optim.clip_grad)
            losses, grad_norm, signal_number = _agree(done, norm, stop.number)
            if not _is_finite(losses, grad_norm, scaler):
                raise _nonfinite(done, losses, grad_norm, run, state.step)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            if average:
                average.update(state.step)
            state.step, state.losses = state.step + 1, losses
            if after_step:
                after_step(state.step, total_steps)
            epoch = state.step / steps_per_epoch
            log.add_step(
                state.step, epoch=epoch, lr=lr, losses=losses, grad_norm=grad_norm,
                num_images=done.num_images * ranks.world_size,
                seconds=time.perf_counter() - started, wait_seconds=done.wait_seconds,
            )  # fmt: skip
            if finding := watch.add(state.step, losses):
                log.add_finding(state.step, finding)

            is_last = state.step == total_steps
            if probes and (is_last or state.step % probe_every == 0):
                try:
                    state.scores = _probe(probes, module, average, best, state.step, seed)
                except NotFiniteError as error:
                    # Finite losses, but the step blew the weights up.
                    raise _nonfinite(done, losses, grad_norm, run, state.step - 1) from error
                log.add_probe(state.step, epoch=epoch, scores=state.scores)
                is_last |= best.is_over
            if is_last or signal_number or state.step % train.save_every == 0:
                log.flush()
                state.save(run)
            if signal_number or (is_last and stop.number):
                number = signal_number or stop.number
                name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
                raise Interrupted(
                    f"Stopped by {name} after step {state.step}, which is saved in {run.dir}; run "
                    "the same command again to continue.",
                    number,
                )
    return _result(state)


def _check(train: TrainOptions, ranks: Ranks) -> None:
    if train.precision == "auto":
        raise UserError("train.precision auto is settled before a loop begins; state one.")
    is_cuda = ranks.device.type == "cuda"
    if train.precision == "bf16" and is_cuda and not torch.cuda.is_bf16_supported():
        raise UserError("This GPU has no bf16; use --train.precision fp16 or fp32.")


def _result(state: _State) -> FitResult:
    if state.average:
        state.average.copy_to_module()
    scores = state.best.scores or state.scores
    if state.best.weights:
        state.best.copy_to(state.module)
        logger.info("%s", state.best.sentence())
    return FitResult(state.step, state.losses, scores, state.watch.record())


@dataclass(frozen=True)
class _Done:
    """What the micro-batches of one step gave on this rank: ``values`` (micro-batches, names)."""

    names: tuple[str, ...]
    values: Tensor
    keys: list[tuple[str, ...]]
    num_images: int
    wait_seconds: float


def _backward(
    model: nn.Module,
    stream: Iterator[Batch],
    scaler: torch.amp.GradScaler,
    train: TrainOptions,
    ranks: Ranks,
    *,
    seed: int,
    step: int,
) -> _Done:
    """Gradients of one step: the mean over micro-batches (and, through DDP, over ranks)."""
    names: tuple[str, ...] = ()
    values, keys, num_images, wait_seconds = [], [], 0, 0.0
    kind, is_lower = ranks.device.type, train.precision != "fp32"
    for micro in range(train.accumulate_steps):
        waiting_since = time.perf_counter()
        batch = next(stream, None)
        wait_seconds += time.perf_counter() - waiting_since
        if batch is None:
            raise RunError(f"The data ended at step {step + 1}; it must last for the whole run.")
        torch.manual_seed(_mix(seed, step, micro, ranks.rank))
        is_last = micro == train.accumulate_steps - 1  # when DDP averages gradients over ranks
        waits = isinstance(model, DistributedDataParallel) and not is_last
        with model.no_sync() if waits else nullcontext():  # type: ignore[operator]
            with torch.autocast(kind, DTYPES[train.precision], enabled=is_lower):
                losses = model(batch)
            scaler.scale(losses.total / train.accumulate_steps).backward()
        parts = {"total": losses.total.detach(), **losses.parts}
        if losses.at_zero is not None:
            parts["at_zero"] = losses.at_zero
        names = tuple(parts)
        values.append(torch.stack([part.double() for part in parts.values()]))
        keys.append(batch.keys)
        num_images += len(batch.keys)  # of several views each image counts once
    return _Done(names, torch.stack(values), keys, num_images, wait_seconds)


def _mix(*numbers: int) -> int:
    """One well-mixed 64-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def _clip(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, max_norm: float | None
) -> Tensor:
    """Unscale the gradients, clip them where wanted, and return their norm from before."""
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if max_norm is not None:
        clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def _agree(
    done: _Done, grad_norm: Tensor, signal_number: int
) -> tuple[dict[str, float], float, int]:
    """Losses averaged over micro-batches and ranks, the gradient norm, a signal that any rank got.

    One reduction and the step's one wait for the device. A loss that is not finite on one rank is
    so on all of them.
    """
    flags = torch.zeros(2, dtype=torch.float64)
    if signal_number:
        flags[int(signal_number == signal.SIGINT)] = 1
    norm = grad_norm.double().reshape(1)
    vector = mean_over_ranks(torch.cat([done.values.mean(0), norm, flags.to(norm.device)]))
    *losses, mean_norm, is_terminated, is_interrupted = vector.tolist()
    number = signal.SIGTERM if is_terminated else signal.SIGINT if is_interrupted else 0
    return dict(zip(done.names, losses, strict=True)), mean_norm, int(number)


def _is_finite(losses: dict[str, float], grad_norm: float, scaler: torch.amp.GradScaler) -> bool:
    if not all(math.isfinite(value) for value in losses.values()):
        return False
    # With fp16 an overflow of the gradients is the scaler's way to find its scale; it skips the
    # step. At a scale of 1 nothing is left to lower, and the gradients themselves are at fault.
    return math.isfinite(grad_norm) or (scaler.is_enabled() and scaler.get_scale() > 1)


def _nonfinite(
    done: _Done, losses: dict[str, float], grad_norm: float, run: Run, step: int
) -> RunError:
    """The error for a step whose losses or gradients are not finite; writes ``nonfinite.json``."""
    own: list[dict[str, Any]] = []
    for values, keys in zip(done.values.tolist(), done.keys, strict=True):
        texts = {name: repr(value) for name, value in zip(done.names, values, strict=True)}
        own.append({"is_finite": all(map(math.isfinite, values)), "losses": texts, "keys": keys})
    everything = [entry for rank in gather(own) for entry in rank]
    guilty = [entry for entry in everything if not entry["is_finite"]] or everything
    file = run.dir / "nonfinite.json"
    record = {"step": step + 1, "grad_norm": repr(grad_norm), "micro_batches": everything}
    on_main_rank(lambda: write_json(file, record))
    samples = [key for entry in guilty for key in entry["keys"]]
    parts = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    more = f" and {len(samples) - 4} more" if len(samples) > 4 else ""
    return RunError(
        f"Step {step + 1} is not finite: losses {parts}; gradient norm {grad_norm:.4g}; samples "
        f"{', '.join(samples[:4])}{more} (all in {file}). The last checkpoint is kept. "
        "Start another run with a lower --optim.base-lr, with --optim.clip-grad 1, or with "
        "--train.precision fp32."
    )


def _probe(
    probes: Callable[[nn.Module, int], dict[str, float]],
    module: nn.Module,
    average: Average | None,
    best: Best,
    step: int,
    seed: int,
) -> dict[str, float]:
    torch.manual_seed(_mix(seed, step))
    with average.in_module() if average else nullcontext():
        scores = on_main_rank(lambda: probes(module, step))
        best.add(module, step, scores)
    return scores
