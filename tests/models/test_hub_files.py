"""Files for timm: the same network, or none."""

import json

import pytest
import timm
import torch

from limbeck.errors import RunError
from limbeck.models import hub_files
from limbeck.models.build import build_student
from limbeck.models.hub_files import timm_reads, write_for_timm
from limbeck.models.options import StudentOptions

SHAPES = [
    "vit_tiny:img_size=32:patch_size=8:embed_dim=32:depth=2:num_heads=2",
    "tiny_vit_5m:embed_dims=16-32-48-64:depths=1-1-1-1:head_dim=16:img_size=64",
]


@pytest.mark.parametrize("shape", SHAPES)
def test_timm_makes_the_same_network(shape, tmp_path):
    encoder = build_student(StudentOptions(name=shape), seed=0).eval()
    assert timm_reads(encoder)
    write_for_timm(encoder, tmp_path, crop_ratio=0.9, licence="mit")
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.rand(1, 3, *encoder.facts.img_size)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), encoder.model(images))
    config = timm.data.resolve_model_data_config(model)
    assert config["crop_pct"] == 0.9 and tuple(config["std"]) == encoder.facts.std
    assert model.pretrained_cfg["license"] == "mit" and not model.pretrained_cfg["tag"]
    write_for_timm(encoder, tmp_path, crop_ratio=0.9, licence=None)  # timm's own is of its weights
    told = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    assert told["license"] is None and told.get("origin_url") is None


def test_another_network_is_not_handed_on(tmp_path, monkeypatch):
    encoder = build_student(StudentOptions(name=SHAPES[0]), seed=0).eval()
    monkeypatch.setattr(hub_files, "TOLERANCE", -1.0)
    with pytest.raises(RunError, match="timm makes another network of the files"):
        write_for_timm(encoder, tmp_path, crop_ratio=0.9, licence=None)
