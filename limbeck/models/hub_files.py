"""A finished student as a repository's files, which timm reads by name (hf-hub:OWNER/NAME)."""

from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf

from limbeck.errors import RunError
from limbeck.models.encoder import EncoderFacts
from limbeck.models.finished import Savable, timm_calls
from limbeck.models.timm_encoder import TimmEncoder

TOLERANCE = 1e-4
"""Of what timm's own copy may say otherwise, in parts of the largest value."""


def timm_reads(encoder: Savable) -> bool:
    """Whether timm's config can say all of it: not where heads were fitted to a teacher's."""
    calls = timm_calls(encoder)
    return calls is not None and not calls["heads"]


def write_for_timm(
    encoder: TimmEncoder, folder: Path, *, crop_ratio: float, licence: str | None
) -> None:
    """Write model.safetensors and config.json, and see that timm makes the same network of them.

    Raises RunError where it does not, and then nobody should be given the files.
    """
    calls, facts = timm_calls(encoder), encoder.facts
    assert calls is not None and not calls["heads"]
    classes = list(facts.origin.get("classes") or ())
    # What timm knows of the weights that it has under this name is not true of these.
    own = dict.fromkeys(("origin_url", "paper_name", "paper_ids", "notes")) | {"tag": ""}
    told: dict[str, Any] = {"pretrained_cfg": own | {"license": licence}}
    if len(classes) == facts.num_classes and classes:
        told["label_names"] = classes
    save_for_hf(
        encoder.model, str(folder), model_config=told, model_args=calls["kwargs"],
        safe_serialization=True, data_config=_data_config(facts, crop_ratio),
    )  # fmt: skip
    copy = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, *facts.img_size, generator=generator)
    with torch.inference_mode():
        own, theirs = (model.eval()(images) for model in (encoder.model, copy))
    worst = float((own - theirs).abs().max() / own.abs().max().clamp(min=1e-6))
    if not worst <= TOLERANCE:
        raise RunError(
            f"timm makes another network of the files (answers differ by {worst:.1g} of the "
            "largest), so they would mislead; please report it with this version of timm."
        )


def _data_config(facts: EncoderFacts, crop_ratio: float) -> dict[str, Any]:
    return {
        "input_size": (3, *facts.img_size),
        "mean": facts.mean,
        "std": facts.std,
        "interpolation": "bicubic",
        "crop_pct": crop_ratio,
        "crop_mode": "center",
    }
