"""The optimisers with their parameter groups, and the moving average of the weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from limbeck.engine.options import OptimOptions
from limbeck.ops.schedules import layer_scale

MOMENTUM = 0.9  # MAE-Lite's transfer to small sets, arXiv 2205.14443


def param_groups(
    module: nn.Module,
    options: OptimOptions,
    layer_id: Callable[[str], int] | None = None,
    num_layers: int | None = None,
) -> list[dict[str, Any]]:
    """Trainable parameters grouped by (layer, decayed or not), ready for an optimiser.

    Not decayed: tensors with fewer than two axes (but with ``decay_all``), and those whose last
    name is in ``no_decay_names``. Each group has ``lr_scale``, the factor that ``set_lr`` applies.
    The layer of a parameter is asked for by its name in ``module``, and only where ``layer_decay``
    is not 1; ``layer_id`` and ``num_layers`` (the depth) must be given then.
    """
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        layer, scale = 0, 1.0
        if options.layer_decay != 1:
            if layer_id is None or num_layers is None:
                raise ValueError("layer_decay needs layer_id and num_layers")
            layer, last = layer_id(name), num_layers
            if options.layer_decay_count == "blocks":
                layer, last = min(max(layer, 1), num_layers), num_layers - 1
            scale = layer_scale(layer, last, options.layer_decay)
            scale *= options.head_lr_scale if layer > num_layers else 1.0
        is_wide = parameter.ndim > 1 or options.decay_all
        is_decayed = is_wide and name.rpartition(".")[2] not in options.no_decay_names
        group = groups.setdefault(
            (layer, is_decayed),
            {
                "params": [],
                "weight_decay": options.weight_decay if is_decayed else 0.0,
                "lr_scale": scale,
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def build_optimizer(
    module: nn.Module,
    options: OptimOptions,
    layer_id: Callable[[str], int] | None = None,
    num_layers: int | None = None,
) -> Optimizer:
    """The chosen optimiser over ``param_groups``; its learning rate is 0 until ``set_lr``.

    AdamW's weight decay shrinks the weights by themselves; SGD's is torch's, a part of the gradient
    (after clipping) and so of the momentum.
    """
    groups = param_groups(module, options, layer_id, num_layers)
    # Fused exists on the CPU and on CUDA, the two devices of the loop: one kernel, no step on host.
    if options.optimizer == "sgd":
        return SGD(groups, lr=0.0, momentum=MOMENTUM, nesterov=True, fused=True)
    return AdamW(groups, lr=0.0, betas=options.betas, eps=options.eps, fused=True)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of every group: ``lr``, its minimum included, times ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


class Average:
    """Exponential moving average of a module's trainable parameters.

    ``decay`` is the final one: after n updates min(decay, (1 + n) / (10 + n)) is used (the rule of
    TensorFlow's ExponentialMovingAverage), so that a short run does not end near its first weights.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = {
            name: parameter
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        self.averages = {name: tensor.detach().clone() for name, tensor in self.parameters.items()}

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        """Move towards the parameters; ``num_updates`` counts earlier updates."""
        decay = min(self.decay, (1 + num_updates) / (10 + num_updates))
        current: list[Tensor] = list(self.parameters.values())
        torch._foreach_lerp_(list(self.averages.values()), current, 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return self.averages

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Set the averages; the names must be the same."""
        if state.keys() != self.averages.keys():
            raise ValueError("the saved averages are of other parameters")
        for name, tensor in state.items():
            self.averages[name].copy_(tensor)

    @torch.no_grad()
    def copy_to_module(self) -> None:
        """Replace the module's parameters by their averages."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self.averages[name])

    @contextmanager
    def in_module(self) -> Iterator[None]:
        """The module has the averages inside the ``with`` block, its own weights after it."""
        own = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.copy_to_module()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(own[name])
