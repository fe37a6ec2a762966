"""Learning-rate schedules as pure functions of the step; nothing here has a state."""

import math
from collections.abc import Sequence


def peak_lr(base_lr: float, global_batch_size: int) -> float:
    """The linear scaling rule: ``base_lr`` is meant for 256 samples per step."""
    return base_lr * global_batch_size / 256


def cosine_lr(
    step: int,
    *,
    steps_per_epoch: int,
    epochs: float,
    warmup_epochs: float,
    peak_lr: float,
    min_lr: float,
    warmup_lr: float = 0.0,
    is_shifted: bool = True,
) -> float:
    """Learning rate of a step (counted from 0): linear warm-up, then half a cosine.

    With e = step / steps_per_epoch, the fractional epoch:
    lr = start + (peak - start) e / warmup for e < warmup, which ignores ``min_lr``, so the first
    step has lr start, ``warmup_lr``; then
    lr = min + (peak - min) (1 + cos(pi (e - warmup) / (epochs - warmup))) / 2,
    and ``min_lr`` from ``epochs`` on. The cosine of one that is not shifted is that of e / epochs,
    as if it had begun at the start: TinyViT's (arXiv 2207.10666), whose released code also applies
    every value one step late, which is not done here.
    """
    epoch = step / steps_per_epoch
    if epoch < warmup_epochs:
        return warmup_lr + (peak_lr - warmup_lr) * epoch / warmup_epochs
    if epoch >= epochs:
        return min_lr
    begin = warmup_epochs if is_shifted else 0.0
    progress = (epoch - begin) / (epochs - begin)
    return min_lr + (peak_lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def poly_lr(
    step: int,
    *,
    steps_per_epoch: int,
    epochs: float,
    warmup_epochs: float,
    peak_lr: float,
    min_lr: float,
    warmup_lr: float = 0.0,
    is_shifted: bool = True,
) -> float:
    """Likewise with a straight line instead of the cosine, as segmenters are trained.

    One that is not shifted falls from the start, and the warm-up of W steps multiplies it:
    lr = (min + (peak - min) (1 - step / T)) (1 - (1 - step / W) (1 - warmup_lr / peak)) up to W, so
    that the peak is never reached (mmcv 1.3's, with which TinyMIM and G2SD were published). A
    shifted one has the peak as its step W - 1 and as its step W, and ``min_lr`` as its last, T - 1
    (mmengine's, MAE-Lite's).
    """
    total, warmup = epochs * steps_per_epoch, warmup_epochs * steps_per_epoch
    if not is_shifted:
        lr = min_lr + (peak_lr - min_lr) * max(0.0, 1 - step / total)
        share = min(1.0, step / warmup) if warmup else 1.0
        return lr * (1 - (1 - share) * (1 - warmup_lr / peak_lr))
    if step < warmup:
        return warmup_lr + (peak_lr - warmup_lr) * min(1.0, step / max(1.0, warmup - 1))
    progress = (step - warmup) / max(1.0, total - 1 - warmup)
    return min_lr + (peak_lr - min_lr) * max(0.0, 1 - progress)


def step_lr(
    step: int,
    *,
    steps_per_epoch: int,
    epochs: float,
    warmup_epochs: float,
    peak_lr: float,
    min_lr: float,
    warmup_lr: float = 0.0,
    drops: Sequence[float] = (),
) -> float:
    """Likewise a tenth at each of the ``drops``, shares of the run, as detectors are trained.

    A drop is at the step that its share of all steps reaches, rounded down; ``min_lr`` is the least
    after the warm-up.
    """
    warmup = warmup_epochs * steps_per_epoch
    if step < warmup:
        return warmup_lr + (peak_lr - warmup_lr) * step / warmup
    count = sum(step >= int(share * epochs * steps_per_epoch) for share in drops)
    return max(min_lr, peak_lr * 0.1**count)


def layer_scale(layer_id: int, num_layers: int, decay: float) -> float:
    """Learning-rate factor of a layer: 1 after the last block, ``decay`` times less per block.

    ``layer_id`` is 0 for the embedding, k + 1 for block k, ``num_layers`` + 1 for what follows.
    """
    return decay ** (num_layers + 1 - layer_id)


def cosine_momentum(step: int, total_steps: int, start: float) -> float:
    """Momentum of a moving average at a step (counted from 0): from ``start`` to 1, half a cosine.

    m = 1 - (1 - start) (1 + cos(pi step / total_steps)) / 2 (arXiv 2006.07733).
    """
    return 1 - (1 - start) * 0.5 * (1 + math.cos(math.pi * step / total_steps))
