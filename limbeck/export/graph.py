"""What is exported: an encoder with the ends that its users ask for, as one graph of tensors.

Preprocessing is at its front, by choice, and names of its outputs are those of the files.
"""

from copy import deepcopy
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from limbeck.engine.machine import Precision
from limbeck.errors import UserError
from limbeck.export.formats import InputKind
from limbeck.methods.teacher import Teacher, autocast
from limbeck.models.dense.segmenter import Segmenter
from limbeck.models.encoder import Encoder
from limbeck.records import LOGIT_KINDS, Features, Tap

INPUT = "images"
MAX_BATCH, MAX_SIDE = 4096, 2**13
Pool = Literal["mean", "cls"]


class Graph(nn.Module):
    """A copy of ``encoder`` in evaluation mode, from images to outputs by name.

    A backbone gives "tokens" (B, N, D) and "embedding" (B, D), pooled by ``pool``; a classifier
    "logits" (B, C), of two heads also "class_logits" and "dist_logits"; a segmenter "logits"
    (B, C, h, w) and "mask" (B, H, W), the class of each pixel, uint8, or int32 of more than 256.
    All others are float32. ``any_size``: of images of any multiple of the patch size. With
    ``shows_blocks`` the tokens after each block come before all others, for who looks for a fault.
    Raises UserError where a CLS token or other sizes can't be had.
    """

    def __init__(
        self,
        encoder: Encoder,
        input_kind: InputKind = "float",
        *,
        pool: Pool = "mean",
        any_size: bool = False,
        shows_blocks: bool = False,
    ) -> None:
        super().__init__()
        facts = encoder.facts
        if pool == "cls" and not facts.has_cls_token:
            raise UserError("This network has no CLS token; leave --pool out.")
        copied = deepcopy(encoder).cpu().eval().requires_grad_(False)
        if input_kind == "normalised":
            inner: Any = copied.backbone if isinstance(copied, Segmenter) else copied
            inner.mean, inner.std = torch.zeros_like(inner.mean), torch.ones_like(inner.std)
        self.encoder = copied
        self.input_kind, self.pool, self.any_size = input_kind, pool, any_size
        self.precision: Precision = "fp32"
        self.blocks = [Tap("tokens", k) for k in range(facts.depth)] if shows_blocks else []
        offered = encoder.offered_taps()
        self.ends = [Tap(kind) for kind in LOGIT_KINDS if kind in offered] or [Tap("output")]
        if any_size:
            self._check_sizes()

    def cast(self, precision: Precision) -> "Graph":
        """A copy whose blocks compute in it; what comes after them stays float32."""
        copied = deepcopy(self)
        copied.encoder = Teacher(copied.encoder, torch.device("cpu"), precision).encoder
        copied.precision = precision
        return copied

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what it takes; -1 where any number will do."""
        height, width = (-1, -1) if self.any_size else self.encoder.facts.img_size
        return (-1, height, width, 3) if self.input_kind == "uint8" else (-1, 3, height, width)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the outputs, in their order."""
        with torch.no_grad():
            return tuple(self(self.example(1)))

    def example(self, batch_size: int = 2) -> Tensor:
        """Images drawn once, of the kind that is taken."""
        height, width = self.encoder.facts.img_size
        if self.any_size:  # its own would be taken for a constant
            height, width = self.other_size
        images = torch.rand(
            batch_size, 3, height, width, generator=torch.Generator().manual_seed(0)
        )
        if self.input_kind == "uint8":
            return (255 * images.permute(0, 2, 3, 1)).to(torch.uint8).contiguous()
        return images

    def feed(self, pixels: Tensor) -> np.ndarray:
        """Images uint8 (B, 3, H, W) as they are to be given to the file."""
        if self.input_kind == "uint8":
            return pixels.permute(0, 2, 3, 1).contiguous().numpy()
        images = pixels.float() / 255
        if self.input_kind == "normalised":
            mean, std = (
                torch.tensor(each).view(3, 1, 1)
                for each in (self.encoder.facts.mean, self.encoder.facts.std)
            )
            images = (images - mean) / std
        return images.numpy()

    @torch.no_grad()
    def answer(self, pixels: Tensor) -> dict[str, np.ndarray]:
        """What PyTorch says of images uint8 (B, 3, H, W)."""
        said = self(torch.from_numpy(self.feed(pixels)))
        return {name: value.numpy() for name, value in said.items()}

    def outputs(self) -> dict[str, Any]:
        """Names, types and shapes of the outputs; None where any number will do. Plain data."""
        with torch.no_grad():
            found = self(self.example(1))
        return {
            name: {
                "dtype": str(value.dtype).removeprefix("torch."),
                "shape": [None, *value.shape[1:]],
            }
            for name, value in found.items()
        }

    @property
    def other_size(self) -> tuple[int, int]:
        """Height and width that are not its own."""
        height, width = self.encoder.facts.img_size
        return height + self.step, width + 2 * self.step

    @property
    def step(self) -> int:
        """Pixels of which other sizes are a multiple."""
        return self.encoder.facts.patch_size

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs by name."""
        if self.input_kind == "uint8":
            images = images.permute(0, 3, 1, 2).float() / 255
        taps = (*self.blocks, *self.ends)
        with autocast(torch.device("cpu"), self.precision):
            if self.any_size:
                features = self.encoder.forward_small(images, taps)
            else:
                features = self.encoder(images, None, taps)
        found = {f"block {tap.block}": features.taps[tap].float() for tap in self.blocks}
        return found | self._read(features, images)

    def _read(self, features: Features, images: Tensor) -> dict[str, Tensor]:
        said = {tap.kind: features.taps[tap].float() for tap in self.ends}
        if isinstance(self.encoder, Segmenter):
            wide = F.interpolate(said["logits"], images.shape[-2:], mode="bilinear")
            few = self.encoder.facts.num_classes <= 256
            return said | {"mask": wide.argmax(1).to(torch.uint8 if few else torch.int32)}
        if "output" not in said:
            return said
        tokens = said["output"]
        pooled = tokens[:, features.num_prefix_tokens :].mean(1)
        return {"tokens": tokens, "embedding": tokens[:, 0] if self.pool == "cls" else pooled}

    def _check_sizes(self) -> None:
        """Raise UserError for a network that is built for one size."""
        try:
            with torch.no_grad():
                self(self.example(1))
        except UserError as error:
            raise UserError(
                f"{self.encoder.facts.architecture['name']} is built for images of one size, as "
                "its windows or tables of positions are; only a plain ViT with absolute positions "
                "takes others: leave --sizes out."
            ) from error


def without_fused_attention(graph: Graph) -> Graph:
    """A copy whose attention is made of products: ONNX's fused one has four axes alone."""
    plain = deepcopy(graph)
    for module in plain.modules():
        if hasattr(module, "fused_attn"):  # timm's word, in all of its attention modules
            module.fused_attn = False
    return plain


def as_program(graph: Graph) -> ExportedProgram:
    """The graph as torch.export sees it, for any number of images."""
    axes: dict[int, Any] = {0: Dim("batch", min=1, max=MAX_BATCH)}
    if graph.any_size:
        first, most = (1 if graph.input_kind == "uint8" else 2), MAX_SIDE // graph.step
        axes |= {
            first + place: graph.step * Dim(name, min=1, max=most)
            for place, name in enumerate(("rows", "columns"))
        }
    with torch.no_grad():
        return torch.export.export(graph, (graph.example(),), dynamic_shapes=(axes,))
