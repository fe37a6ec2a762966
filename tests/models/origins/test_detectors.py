"""Published detectors: read strictly, without adapters."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.build import build_student
from limbeck.models.dense.build_detector import build_detector
from limbeck.models.options import DetectorOptions, StudentOptions
from limbeck.models.origins.detectors import published_name
from limbeck.models.origins.inspection import inspect_file
from limbeck.models.origins.load import load_encoder
from limbeck.records import Tap

SHAPE = "vit_tiny:img_size=32:patch_size=4:embed_dim=32:depth=5:num_heads=2"


def small(**options):
    encoder = build_student(StudentOptions(name=SHAPE), seed=0)
    options = {"head": "rcnn", "width": 8, "masks": True} | options
    detector = build_detector(encoder, 5, DetectorOptions(**options), 0, (64, 64))
    with torch.no_grad():
        for value in detector.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return detector.eval()


def test_images_smaller_than_a_window_are_read_as_they_were_written(tmp_path):
    encoder = build_student(StudentOptions(name=SHAPE.replace("=32:patch", "=40:patch")), seed=0)
    whole = build_detector(encoder, 5, DetectorOptions(head="rcnn", width=8), 0, (40, 40)).eval()
    file = tmp_path / "small.pth"
    torch.save({"model": published(whole)}, file)
    found = load_encoder(str(file))
    assert found.facts.img_size == (40, 40)
    images = torch.rand(1, 3, 40, 40)
    with torch.no_grad():
        own, other = (each(images, None, (Tap("pyramid", 0),)) for each in (whole, found))
    torch.testing.assert_close(*(each.taps[Tap("pyramid", 0)] for each in (own, other)))


def published(detector):
    return {published_name(name): value for name, value in detector.state_dict().items()}


def with_bias(*names):
    return [f"{name}.{part}" for name in names for part in ("weight", "bias")]


def normed(*names):
    return [f"{n}.weight" for n in names] + with_bias(*(f"{n}.norm" for n in names))


def published_names(depth):
    names = ["backbone.net.pos_embed", *with_bias("backbone.net.patch_embed.proj")]
    for index in range(depth):
        block = f"backbone.net.blocks.{index}"
        names += [f"{block}.attn.rel_pos_h", f"{block}.attn.rel_pos_w"]
        parts = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        names += with_bias(*(f"{block}.{part}" for part in parts))
    pyramid = "backbone.simfp_"
    names += with_bias(*(f"{pyramid}{each}" for each in ("2.0", "2.1", "2.3", "3.0")))
    ends = ("2.4", "2.5", "3.1", "3.2", "4.0", "4.1", "5.1", "5.2")
    names += normed(*(f"{pyramid}{each}" for each in ends))
    assert sum(name.startswith(pyramid) for name in names) == 32
    rpn = ("conv.conv0", "conv.conv1", "objectness_logits", "anchor_deltas")
    names += with_bias(*(f"proposal_generator.rpn_head.{each}" for each in rpn))
    heads = ("box_head.fc1", "box_predictor.cls_score", "box_predictor.bbox_pred",
             "mask_head.deconv", "mask_head.predictor")  # fmt: skip
    names += with_bias(*(f"roi_heads.{each}" for each in heads))
    convs = [f"box_head.conv{k}" for k in range(1, 5)]
    convs += [f"mask_head.mask_fcn{k}" for k in range(1, 5)]
    return set(names) | set(normed(*(f"roi_heads.{each}" for each in convs)))


def test_there_and_back(tmp_path):
    detector = small()
    weights = published(detector)
    assert weights.keys() == published_names(depth=5)
    saved = weights | {f"stu_adapter.conv.{k}.bias": torch.zeros(8) for k in range(5)}
    torch.save({"model": saved, "iteration": 3}, tmp_path / "published.pth")
    again = load_encoder(tmp_path / "published.pth")
    seen = torch.rand(1, 3, 64, 64)
    for one, other in zip(again.answers(seen), detector.answers(seen), strict=True):
        assert torch.equal(one, other)
    kwargs = detector.facts.architecture["kwargs"]
    assert again.facts.architecture["kwargs"] == kwargs | {
        "backbone": again.backbone.facts.architecture
    }
    inner = again.backbone.facts.architecture["kwargs"]
    assert inner == kwargs["backbone"]["kwargs"] | {"window": 14}
    assert again.facts.origin["layout"] == "vitdet_detector"
    assert "Left out adapters (5 tensors)." in again.facts.origin["notes"]
    found = inspect_file(tmp_path / "published.pth")
    assert (found.layout, found.num_classes, found.num_heads) == ("vitdet_detector", 5, (2,) * 5)
    assert found.img_size == (64, 64) and not found.unmatched
    with pytest.raises(UserError, match="is a detector of 5 classes in images of 64 px"):
        load_encoder(tmp_path / "published.pth", img_size=32)


def test_without_masks_it_says_so(tmp_path):
    torch.save(published(small(masks=False)), tmp_path / "published.pth")
    again = load_encoder(tmp_path / "published.pth")
    assert not again.has_masks and "no head of masks" in " ".join(again.facts.origin["notes"])


@pytest.mark.parametrize("change", ["missing", "unexpected", "misshapen"])
def test_nothing_is_loaded_in_part(change, tmp_path):
    weights = published(small())
    name = "roi_heads.box_head.conv2.norm.weight"
    if change == "missing":
        del weights[name]
    elif change == "unexpected":
        weights["roi_heads.more"] = torch.zeros(1)
        name = "roi_heads.more"
    else:
        weights[name] = torch.zeros(3)
    torch.save(weights, tmp_path / "wrong.pth")
    with pytest.raises(UserError, match=f"{change}.*{name}"):
        load_encoder(tmp_path / "wrong.pth")
    found = inspect_file(tmp_path / "wrong.pth")
    assert found.layout == "detector" and found.unmatched


def test_refusals(tmp_path):
    cascade = {"roi_heads.box_predictor.0.cls_score.weight": torch.zeros(3, 8)}
    torch.save(cascade, tmp_path / "cascade.pth")
    with pytest.raises(UserError, match="is of a cascade, whose published names are not known"):
        load_encoder(tmp_path / "cascade.pth")
    part = {"roi_heads.box_predictor.cls_score.weight": torch.zeros(3, 8)}
    torch.save(part, tmp_path / "part.pth")
    with pytest.raises(UserError, match="These are no weights of a whole detector"):
        load_encoder(tmp_path / "part.pth")
