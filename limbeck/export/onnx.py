"""An encoder in ONNX Runtime, as deployed on a processor. Needs the extra "onnx"."""

import importlib.util
import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from limbeck.errors import require_extra
from limbeck.models.encoder import Encoder

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def has_onnx() -> bool:
    """Whether all packages of the extra "onnx" are installed."""
    return all(importlib.util.find_spec(name) for name in PACKAGES)


class _Tokens(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.encoder(images).tokens
        assert tokens is not None
        return tokens


def onnx_pass(encoder: Encoder, batch_size: int, threads: int) -> Callable[[], Tensor]:
    """A forward pass of images drawn once, in fp32 on the CPU, that returns the final tokens.

    (B, N, D), as of the encoder in evaluation mode. Raises UserError where a package is missing.
    """
    for name in PACKAGES:
        if not importlib.util.find_spec(name):
            raise require_extra(name, "onnx", "ONNX Runtime")
    import onnxruntime

    images = torch.rand(batch_size, 3, *encoder.facts.img_size)
    log = logging.getLogger("onnxscript")
    level = log.level
    log.setLevel(logging.WARNING)  # it tells of every rewritten node
    try:
        program = torch.onnx.export(
            _Tokens(encoder).eval(), (images,), dynamo=True, verbose=False, input_names=["images"]
        )
    finally:
        log.setLevel(level)
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {"images": images.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])
