"""What is exported: an encoder with the ends that its users ask for, as one graph of tensors."""

from copy import deepcopy
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from limbeck.engine.machine import Precision
from limbeck.errors import UserError
from limbeck.exports.formats import InputKind
from limbeck.exports.silent import quiet
from limbeck.methods.teacher import Teacher, autocast
from limbeck.models.dense.detector import Detector
from limbeck.models.dense.segmenter import Segmenter
from limbeck.models.encoder import Encoder
from limbeck.records import LOGIT_KINDS, Tap

INPUT = "images"
MAX_BATCH, MAX_SIDE = 4096, 2**13
CPU = torch.device("cpu")
Pool = Literal["mean", "cls"]


class Graph(nn.Module):
    """A copy of ``encoder`` in evaluation mode, from images to outputs by name.

    A backbone gives "tokens" (B, N, D) and "embedding" (B, D), pooled by ``pool``; a classifier
    "logits" (B, C), of two heads also "class_logits" and "dist_logits"; a segmenter "logits"
    (B, C, h, w) and "mask" (B, H, W), the class of each pixel, uint8, or int32 of more than 256; a
    detector "boxes" (B, K, 4), "scores" (B, K), falling, and "classes" (B, K), int64. All others
    are float32. ``any_size``: of images of any multiple of the patch size. With
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
        self.facts = facts = encoder.facts
        if pool == "cls" and not facts.has_cls_token:
            raise UserError("This network has no CLS token; leave --pool out.")
        self.encoder = deepcopy(encoder).cpu().eval().requires_grad_(False)
        if input_kind == "normalised":
            inner: Any = getattr(self.encoder, "backbone", self.encoder)
            inner.mean, inner.std = torch.zeros_like(inner.mean), torch.ones_like(inner.std)
        self.input_kind, self.pool, self.any_size = input_kind, pool, any_size
        self.precision: Precision = "fp32"
        self.blocks = [Tap("tokens", k) for k in range(facts.depth)] if shows_blocks else []
        offered = encoder.offered_taps()
        self.ends = [Tap(kind) for kind in LOGIT_KINDS if kind in offered] or [Tap("output")]
        if any_size and facts.has_boxes:
            raise UserError("A detector sees squares of one size; leave --sizes out.")
        try:
            self.outputs = {name: value[0] for name, value in self(self.example(1)).items()}
        except UserError as error:
            if not any_size:
                raise
            raise UserError(
                f"{facts.architecture['name']} is built for images of one size, as its windows or "
                "tables of positions are; only a plain ViT with absolute positions takes others: "
                "leave --sizes out."
            ) from error

    def cast(self, precision: Precision) -> "Graph":
        """A copy whose blocks compute in it; what comes after them stays float32."""
        copied = deepcopy(self)
        copied.encoder = Teacher(copied.encoder, CPU, precision).encoder
        copied.precision = precision
        return copied

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what it takes; -1 where any number will do."""
        height, width = (-1, -1) if self.any_size else self.facts.img_size
        return (-1, height, width, 3) if self.input_kind == "uint8" else (-1, 3, height, width)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Its own height and width and, where it takes any, others."""
        (height, width), step = self.facts.img_size, self.facts.patch_size
        return [(height, width), (height + step, width + 2 * step)][: 1 + self.any_size]

    def example(self, batch_size: int = 2) -> Tensor:
        """Images drawn once, of the kind that is taken; where any size is, not of its own, which
        would be taken for a constant."""
        draw = torch.Generator().manual_seed(0)
        images = torch.rand(batch_size, 3, *self.sizes[-1], generator=draw)
        return torch.from_numpy(self.feed(images))

    def feed(self, images: Tensor) -> np.ndarray:
        """Images (B, 3, H, W) in 0..1 as they are to be given to the file."""
        if self.input_kind == "uint8":
            return (255 * images).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        if self.input_kind == "normalised":
            mean, std = torch.tensor([self.facts.mean, self.facts.std]).view(2, 3, 1, 1)
            images = (images - mean) / std
        return images.numpy()

    def answer(self, images: Tensor) -> dict[str, np.ndarray]:
        """What PyTorch says of images (B, 3, H, W) in 0..1."""
        said = self(torch.from_numpy(self.feed(images)))
        return {name: value.numpy() for name, value in said.items()}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs by name."""
        if self.input_kind == "uint8":
            images = images.permute(0, 3, 1, 2).float() / 255
        taps = (*self.blocks, *self.ends)
        with autocast(CPU, self.precision):
            if isinstance(self.encoder, Detector):
                return self._detect(images)
            if self.any_size:
                features = self.encoder.forward_small(images, taps)
            else:
                features = self.encoder(images, None, taps)
        said = {tap.kind: features.taps[tap].float() for tap in self.ends}
        if isinstance(self.encoder, Segmenter):
            wide = F.interpolate(said["logits"], images.shape[-2:], mode="bilinear")
            few = self.facts.num_classes <= 256
            said["mask"] = wide.argmax(1).to(torch.uint8 if few else torch.int32)
        elif "output" in said:
            tokens = said["output"]
            pooled = tokens[:, features.num_prefix_tokens :].mean(1)
            said = {"tokens": tokens, "embedding": tokens[:, 0] if self.pool == "cls" else pooled}
        return {f"block {tap.block}": features.taps[tap].float() for tap in self.blocks} | said

    def _detect(self, images: Tensor) -> dict[str, Tensor]:
        assert isinstance(self.encoder, Detector)
        of_blocks = self.encoder(images, None, tuple(self.blocks)).taps if self.blocks else {}
        boxes, scores, classes = self.encoder.answers(images)[:3]
        found = {f"block {tap.block}": of_blocks[tap].float() for tap in self.blocks}
        return found | {"boxes": boxes.float(), "scores": scores.float(), "classes": classes}


def without_fused_attention(graph: Graph) -> Graph:
    """A copy whose attention is made of products: ONNX's fused one has four axes alone."""
    plain = deepcopy(graph)
    for module in plain.modules():
        if hasattr(module, "fused_attn"):  # timm's word, in all of its attention modules
            module.fused_attn = False
    return plain


def layers_of(program: ExportedProgram) -> dict[str, str]:
    """By its module's name each linear layer and convolution, and its node there.

    The node's name stays in ONNX (as a scope) and in OpenVINO (as the head of a name).
    """
    found = {}
    parts = [each for each in program.graph_module.modules() if isinstance(each, GraphModule)]
    for node in (node for part in parts for node in part.graph.nodes):
        if str(node.target).startswith(("aten.linear.", "aten.conv2d.")):
            *_, (path, _) = node.meta["nn_module_stack"].values()
            found[path] = node.name
    return found


def as_program(graph: Graph) -> ExportedProgram:
    """The graph as torch.export sees it, for any number of images."""
    axes: dict[int, Any] = {0: Dim("batch", min=1, max=MAX_BATCH)}
    if graph.any_size:
        step = graph.facts.patch_size
        for axis, name in enumerate(("rows", "columns"), 1 if graph.input_kind == "uint8" else 2):
            axes[axis] = step * Dim(name, min=1, max=MAX_SIDE // step)
    with quiet():
        return torch.export.export(graph, (graph.example(),), dynamic_shapes=(axes,))
