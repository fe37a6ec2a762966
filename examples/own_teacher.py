"""A teacher of your own: any network behind the Encoder contract; here torch's own Transformer.

Run it:  python examples/own_teacher.py [FOLDER_OF_IMAGES]

Without a folder it draws some images. The same function works on the command line:
limbeck distill --teacher own_teacher:build ...
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

import limbeck
from limbeck.data.options import DataOptions
from limbeck.engine.options import OptimOptions, TrainOptions
from limbeck.models.options import StudentOptions, TeacherOptions

WIDTH, DEPTH, HEADS, PATCH, SIDE = 48, 3, 4, 8, 32


class TorchTransformer(limbeck.Encoder):
    """torch.nn.TransformerEncoderLayer blocks on patches, without a CLS token."""

    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, (SIDE // PATCH) ** 2, WIDTH))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(DEPTH)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.facts = limbeck.EncoderFacts(
            embed_dim=WIDTH,
            depth=DEPTH,
            num_heads=(HEADS,) * DEPTH,
            num_prefix_tokens=0,
            has_cls_token=False,
            patch_size=PATCH,
            img_size=(SIDE, SIDE),
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            num_classes=0,
            architecture={"kind": "own_teacher:build"},
            origin={"source": "own_teacher:build", "licence": "mine"},
        )

    def offered_taps(self):
        return ("queries", "keys", "values", "tokens", "output")

    def forward(self, images, ids_keep=None, taps=(), mask_token=None):
        x = self.patch_embed((images - 0.5) / 0.5).flatten(2).transpose(1, 2)  # [B, L, D]
        x = x + self.pos_embed
        if ids_keep is not None:
            x = x.gather(1, ids_keep[..., None].expand(-1, -1, WIDTH))
        wants_output = not taps or any(tap.kind == "output" for tap in taps)
        deepest = max((tap.block % DEPTH for tap in taps if tap.kind != "output"), default=-1)
        found = {}
        for index in range(DEPTH if wants_output else deepest + 1):
            here = [tap for tap in taps if tap.kind != "output" and tap.block % DEPTH == index]
            found |= self._attention_taps(index, x, [tap for tap in here if tap.kind != "tokens"])
            needs_block = wants_output or index < deepest or any(t.kind == "tokens" for t in here)
            x = self.blocks[index](x) if needs_block else x
            found |= {tap: x for tap in here if tap.kind == "tokens"}
        tokens = self.norm(x) if wants_output else None
        found |= {tap: tokens for tap in taps if tap.kind == "output"}
        return limbeck.Features(tokens, 0, self.facts.grid, found)

    def _attention_taps(self, index, x, taps):
        if not taps:
            return {}
        attention = self.blocks[index].self_attn
        qkv = nn.functional.linear(
            self.blocks[index].norm1(x), attention.in_proj_weight, attention.in_proj_bias
        )
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
        named = {"queries": q, "keys": k, "values": v}  # [B, nh, N, hd]
        return {tap: named[tap.kind] for tap in taps}

    def layer_id(self, parameter_name):
        first, _, rest = parameter_name.partition(".")
        if first == "blocks":
            return int(rest.partition(".")[0]) + 1
        return DEPTH + 1 if first == "norm" else 0

    def set_num_heads(self, block, num_heads):
        raise limbeck.UserError("This teacher's heads are fixed.")


def build(**overrides):
    """What ``own_teacher:build`` names: the encoder (yours would load its weights here)."""
    del overrides  # img_size and the like, where a run asks for them
    torch.manual_seed(0)
    return TorchTransformer()


def main(images: Path, out: Path) -> Path:
    config = limbeck.DistillConfig(
        out=out,
        student=StudentOptions(
            name="vit_tiny", img_size=SIDE, patch_size=PATCH, embed_dim=24, depth=2, num_heads=2
        ),
        teacher=TeacherOptions(source="own_teacher:build"),
        data=DataOptions(root=str(images), num_workers=0),
        optim=OptimOptions(base_lr=1e-2),
        train=TrainOptions(epochs=4, global_batch_size=16),
    )
    run = limbeck.distill(config)
    print(limbeck.load(run).facts.num_heads, "heads: the last block took the teacher's")
    return run


def draw_images(folder: Path, count: int = 128) -> Path:
    """Coloured discs on noise, a folder for each diameter, so that the examples need no data."""
    rng = np.random.default_rng(0)
    for index in range(count):
        size = (6, 12, 18, 24)[index % 4]
        image = Image.fromarray(rng.integers(0, 80, (40, 40, 3), dtype=np.uint8))
        x, y = (int(value) for value in rng.integers(0, 40 - size, 2))
        color = tuple(int(value) for value in rng.integers(80, 256, 3))
        ImageDraw.Draw(image).ellipse((x, y, x + size, y + size), fill=color)
        (folder / str(size)).mkdir(parents=True, exist_ok=True)
        image.save(folder / str(size) / f"{index:03d}.png")
    return folder


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        given = Path(sys.argv[1]) if len(sys.argv) > 1 else draw_images(Path(folder) / "images")
        main(given, Path(folder) / "run")
