"""Published segmenters: read strictly, written as they are read, and of a distillation's file."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.build import build_student
from limbeck.models.dense.build import build_segmenter
from limbeck.models.options import SegmenterOptions, StudentOptions
from limbeck.models.origins.inspection import inspect_file
from limbeck.models.origins.load import load_encoder
from limbeck.models.origins.segmenters import to_published_segmenter
from limbeck.records import Tap
from tests.models.families import small_encoder

LOGITS = Tap("logits")
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
BOTH = pytest.mark.parametrize("head", ["upernet", "semantic-fpn"])


SHAPE = "vit_tiny:img_size=32:patch_size=8:embed_dim=32:depth=3:num_heads=2"


def small(encoder=None, **options):
    encoder = encoder or build_student(StudentOptions(name=SHAPE), seed=0)
    segmenter = build_segmenter(encoder, 5, SegmenterOptions(**options), 0)
    with torch.no_grad():
        for value in segmenter.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return segmenter.eval()


def with_bias(*names):
    return [f"{name}.{part}" for name in names for part in ("weight", "bias")]


def units(*names):
    return [f"{n}.conv.weight" for n in names] + [f"{n}.bn.{part}" for n in names for part in NORM]


def g2sd_names(depth):
    names = ["backbone.cls_token", "backbone.pos_embed"]
    names += with_bias("backbone.patch_embed.proj", "decode_head.conv_seg")
    for index in range(depth):
        block = f"backbone.blocks.{index}"
        names += [f"{block}.gamma_1", f"{block}.gamma_2"]
        tables = ("relative_position_bias_table", "relative_position_index")
        names += [f"{block}.attn.{table}" for table in tables]
        parts = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        names += with_bias(*(f"{block}.{part}" for part in parts))
    names += with_bias("backbone.fpn1.0", "backbone.fpn1.3", "backbone.fpn2.0")
    names += [f"backbone.fpn1.1.{part}" for part in NORM]
    head = "decode_head"
    names += units(*(f"{head}.psp_modules.{k}.1" for k in range(4)), f"{head}.bottleneck")
    names += units(*(f"{head}.{part}.{k}" for part in ("lateral_convs", "fpn_convs")
                     for k in range(3)), f"{head}.fpn_bottleneck")  # fmt: skip
    names += units("auxiliary_head.convs.0") + with_bias("auxiliary_head.conv_seg")
    return set(names)


def mae_lite_names(depth):
    names = ["backbone.cls_token", "backbone.pos_embed"]
    names += with_bias("backbone.patch_embed.projection", "decode_head.conv_seg")
    for index in range(depth):
        layer = f"backbone.layers.{index}"
        names += [f"{layer}.gamma_1", f"{layer}.gamma_2"]
        tables = ("relative_position_bias_table", "relative_position_index")
        names += [f"{layer}.attn.{table}" for table in tables]
        parts = ("ln1", "ln2", "attn.qkv", "attn.proj", "ffn.layers.0.0", "ffn.layers.1")
        names += with_bias(*(f"{layer}.{part}" for part in parts))
    names += with_bias(*(f"neck.{part}" for part in (
        "upsample_4x.0", "upsample_4x.3", "upsample_2x.0", "identity", "downsample_2x.0"
    )))  # fmt: skip
    names += [f"neck.upsample_4x.1.{part}" for part in NORM]
    heads = [(0, 0), (1, 0), (2, 0), (2, 2), (3, 0), (3, 2), (3, 4)]
    names += units(*(f"decode_head.scale_heads.{level}.{step}" for level, step in heads))
    return set(names)


@BOTH
def test_there_and_back(head, tmp_path):
    segmenter = small(head=head)
    weights = to_published_segmenter(segmenter)
    names = {"upernet": g2sd_names, "semantic-fpn": mae_lite_names}[head](depth=3)
    assert weights.keys() == names
    torch.save({"state_dict": weights, "meta": {"epoch": 1}}, tmp_path / "published.pth")
    again = load_encoder(tmp_path / "published.pth")
    seen = torch.rand(1, 3, 32, 32)
    for each in (again, load_encoder(tmp_path / "published.pth", num_classes=5)):
        found, expected = (n(seen, None, (LOGITS,)).taps[LOGITS] for n in (each, segmenter))
        assert torch.equal(found, expected)
    assert again.facts.architecture["kwargs"] == segmenter.facts.architecture["kwargs"] | {
        "backbone": again.backbone.facts.architecture
    }
    back = to_published_segmenter(again)
    assert all(torch.equal(value, weights[name]) for name, value in back.items())


def test_indices_are_those_of_the_published_table():
    index = to_published_segmenter(small(head="upernet"))[
        "backbone.blocks.0.attn.relative_position_index"
    ]
    # A grid of 4 x 4: 7 x 7 distances, then CLS to patch, patch to CLS, CLS to CLS.
    assert index.shape == (17, 17)
    assert (index[0, 0], index[0, 5], index[5, 0]) == (51, 49, 50)
    assert (index[5, 5], index[1, 16], index[16, 1]) == (24, 0, 48)


def test_of_a_distillation_s_checkpoint_the_student(tmp_path):
    segmenter, other = small(head="upernet"), small(head="upernet")
    own, teacher = map(to_published_segmenter, (segmenter, other))
    saved = {f"student.{name}": value for name, value in own.items()}
    saved |= {f"teacher.{name}": value for name, value in teacher.items()}
    saved["student_decode_head_conv_seg"] = torch.zeros(2, 5, 4, 4)
    torch.save({"state_dict": saved}, tmp_path / "both.pth")
    student = load_encoder(tmp_path / "both.pth")
    notes = " ".join(student.facts.origin["notes"])
    assert "Left out the teacher that was saved with it" in notes and "activations" in notes
    assert all(torch.equal(v, student.state_dict()[n]) for n, v in segmenter.state_dict().items())


@BOTH
@pytest.mark.parametrize("change", ["missing", "unexpected", "misshapen"])
def test_nothing_is_loaded_in_part(head, change, tmp_path):
    weights = to_published_segmenter(small(head=head))
    name = next(name for name in weights if name.endswith("attn.proj.weight"))
    if change == "missing":
        del weights[name]
    elif change == "unexpected":
        weights["decode_head.more"] = torch.zeros(1)
        name = "decode_head.more"
    else:
        weights[name] = torch.zeros(3, 3)
    torch.save(weights, tmp_path / "wrong.pth")
    with pytest.raises(UserError, match=f"{change}.*{name}"):
        load_encoder(tmp_path / "wrong.pth")


def test_tables_of_other_pairs_are_refused(tmp_path):
    weights = to_published_segmenter(small(head="upernet"))
    name = "backbone.blocks.1.attn.relative_position_index"
    weights[name] = weights[name].flip(0)
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(UserError, match="is not BEiT's order of relative positions"):
        load_encoder(tmp_path / "other.pth")


@pytest.mark.parametrize(
    "options",
    [
        {"head": "light"},
        {"head": "upernet", "rel_pos": False},
        {"head": "upernet", "norm": "group"},
        {"head": "upernet", "neck": "wide"},
        {"head": "upernet", "aux": False},
    ],
)
def test_what_no_published_layout_holds(options):
    with pytest.raises(UserError, match="No published layout can hold"):
        to_published_segmenter(small(**options))


def test_other_means_are_in_no_published_layout():
    with pytest.raises(UserError, match="ImageNet's mean and std"):
        to_published_segmenter(small(small_encoder("mae"), head="upernet"))


def test_a_segmenter_of_another_layout_is_told(tmp_path):
    torch.save({"decode_head.conv_seg.weight": torch.zeros(3, 8, 1, 1)}, tmp_path / "own.pth")
    with pytest.raises(UserError, match="is of a segmenter, in no layout that is known"):
        load_encoder(tmp_path / "own.pth")


@BOTH
def test_it_is_recognised_when_it_is_looked_at(head, tmp_path):
    weights = to_published_segmenter(small(head=head))
    torch.save({"state_dict": weights}, tmp_path / "published.pth")
    found = inspect_file(tmp_path / "published.pth")
    layout = {"upernet": "g2sd_segmenter", "semantic-fpn": "mae_lite_segmenter"}[head]
    assert (found.layout, found.num_classes, found.num_heads) == (layout, 5, (2, 2, 2))
    assert found.img_size == (32, 32) and not found.unmatched
    del weights["backbone.cls_token"]
    torch.save({"state_dict": weights}, tmp_path / "published.pth")
    found = inspect_file(tmp_path / "published.pth")
    assert found.layout == "segmenter" and found.unmatched
    assert "1 missing (backbone.cls_token)" in found.notes[-1]
