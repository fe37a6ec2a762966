"""The segmenter as an encoder: its taps, layers, files, and what it refuses."""

import json

import pytest
import torch

import limbeck
from limbeck.engine.optim import param_groups
from limbeck.engine.options import OptimOptions
from limbeck.errors import UserError
from limbeck.models.build import build_student
from limbeck.models.dense.build import build_segmenter
from limbeck.models.dense.segmenter import rebuild_segmenter
from limbeck.models.finished import load_student, save_student
from limbeck.models.options import SegmenterOptions, StudentOptions
from limbeck.models.origins.load import load_encoder
from limbeck.records import Tap
from tests.models.families import FAMILIES, IMG_SIZE, small_encoder

LOGITS, AUX = Tap("logits"), Tap("aux_logits")
HEADS = ("light", "upernet", "semantic-fpn")


def small(family="mae", img_size=None, **options):
    segmenter = build_segmenter(small_encoder(family), 5, SegmenterOptions(**options), 0, img_size)
    with torch.no_grad():
        for value in segmenter.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return segmenter.eval()


def images(count=2):
    return torch.rand(count, 3, IMG_SIZE, IMG_SIZE)


def test_taps_of_maps_and_of_blocks_come_together():
    segmenter = small(head="upernet")
    taps = (LOGITS, AUX, Tap("pyramid", 0), Tap("pyramid", -1), Tap("tokens", 1), Tap("scores", 2))
    seen = images()
    found = segmenter(seen, None, taps).taps
    assert set(found) == set(taps)
    shapes = [tuple(found[tap].shape) for tap in taps]
    assert shapes[:4] == [(2, 5, 16, 16), (2, 5, 4, 4), (2, 32, 16, 16), (2, 32, 2, 2)]
    assert torch.equal(found[LOGITS], segmenter(seen, None, (LOGITS,)).taps[LOGITS])
    inner = segmenter.backbone(seen, None, (Tap("tokens", 1),)).taps[Tap("tokens", 1)]
    assert torch.equal(found[Tap("tokens", 1)], inner)


def test_what_it_says_of_itself():
    facts = small("beit", head="light").facts
    assert (facts.has_maps, facts.num_classes, facts.depth, facts.can_drop) == (True, 5, 3, False)
    assert "aux_logits" not in small().offered_taps()
    assert "output" not in small().offered_taps()
    assert {"logits", "pyramid", "aux_logits"} < set(small(head="upernet").offered_taps())


@pytest.mark.parametrize("head", HEADS)
def test_it_is_rebuilt_from_plain_data(head):
    segmenter = small(head=head, norm="group", width=32)
    architecture = json.loads(json.dumps(segmenter.facts.architecture))
    again = rebuild_segmenter(architecture).eval()
    again.load_state_dict(segmenter.state_dict())
    assert again.facts.architecture == segmenter.facts.architecture
    seen = images()
    for tap in (LOGITS, Tap("pyramid", 2)):
        assert torch.equal(
            again(seen, None, (tap,)).taps[tap], segmenter(seen, None, (tap,)).taps[tap]
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_saved_and_loaded(family, tmp_path):
    segmenter = small(family)
    save_student(segmenter, tmp_path, {"classes": list("abcde")})
    seen = images(1)
    expected = segmenter(seen, None, (LOGITS,)).taps[LOGITS]
    for loaded in (limbeck.load(tmp_path), load_encoder(tmp_path)):
        assert torch.equal(loaded(seen, None, (LOGITS,)).taps[LOGITS], expected)
        assert loaded.facts.origin["classes"] == list("abcde")


def test_it_is_loaded_for_another_size(tmp_path):
    save_student(small(), tmp_path, {})
    wide = load_encoder(tmp_path, img_size=(32, 64))
    assert wide(torch.rand(1, 3, 32, 64), None, (LOGITS,)).taps[LOGITS].shape == (1, 5, 16, 32)


def test_a_segmenter_is_no_classifier(tmp_path):
    save_student(small(), tmp_path, {})
    with pytest.raises(UserError, match="is a segmenter, and here an encoder"):
        load_student(tmp_path)
    with pytest.raises(UserError, match="is a segmenter of 5 classes, and no other can"):
        load_encoder(tmp_path, num_classes=0)


def broken(**changes):
    architecture = json.loads(json.dumps(small().facts.architecture))
    architecture["kwargs"] |= changes
    return architecture


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": [0, 1, 2, 3]}, "reads the blocks 0, 1, 2, 3 does not fit an encoder of 3"),
        ({"img_size": [64, 64]}, "states another image size than its backbone"),
        ({"head": "huge"}, "head"),
        ({"width": 2**30}, "width"),
        ({"num_classes": 0}, "num_classes"),
    ],
)
def test_parts_that_no_segmenter_has(changes, message):
    with pytest.raises(UserError, match=message):
        rebuild_segmenter(broken(**changes))


def test_refusals():
    segmenter = small()
    with pytest.raises(UserError, match="offers only"):
        segmenter(images(), None, (AUX,))
    with pytest.raises(UserError, match="has 4 levels"):
        segmenter(images(), None, (Tap("pyramid", 4),))
    with pytest.raises(UserError, match="A segmenter sees whole images"):
        segmenter(images(), torch.zeros(2, 4, dtype=torch.long), (LOGITS,))
    with pytest.raises(ValueError, match="no parameter of"):
        segmenter.layer_id("decoder.weight")


def test_heads_are_set_in_both_architectures():
    segmenter = small()
    segmenter.set_num_heads(2, 4)
    again = rebuild_segmenter(segmenter.facts.architecture)
    assert again.facts.num_heads == again.backbone.facts.num_heads == (2, 2, 4)


@pytest.mark.parametrize(
    ("rate", "first", "block", "last"),
    [(0.8, 0.0549755814, 0.0687194767, 0.8), (0.65, 0.0036972059, 0.0056880091, 0.65)],
)
def test_published_learning_rates_by_name(rate, first, block, last):
    """Golden row 7: also as a distiller names them, which is what several processes train."""
    encoder = build_student(StudentOptions(name="vit_tiny:num_heads=12"), seed=0)
    segmenter = build_segmenter(encoder, 150, SegmenterOptions(head="semantic-fpn"), 0, (512, 512))
    options = OptimOptions(layer_decay=rate)
    groups = param_groups(segmenter, options, segmenter.layer_id, 12)
    scales = {
        id(value): (group["lr_scale"], group["weight_decay"] > 0)
        for group in groups
        for value in group["params"]
    }
    by_name = {name: scales[id(value)] for name, value in segmenter.named_parameters()}
    start = "backbone.model."
    for name in ("pos_embed", "patch_embed.proj.bias"):
        assert by_name[start + name][0] == pytest.approx(first, abs=1e-10)
    for name in ("gamma_1", "attn.relative_position_bias_table", "attn.qkv.weight"):
        assert by_name[f"{start}blocks.0.{name}"][0] == pytest.approx(block, abs=1e-10)
        assert by_name[f"{start}blocks.11.{name}"][0] == pytest.approx(last)
    for name, (scale, _) in by_name.items():
        if name.startswith(("neck.", "head.")):
            assert scale == 1


def test_published_weight_decay_and_without_the_positions():
    """Golden row 7: what is decayed as published, in tensors and values."""
    encoder = build_student(StudentOptions(name="vit_tiny:num_heads=12"), seed=0)
    segmenter = build_segmenter(encoder, 150, SegmenterOptions(head="semantic-fpn"), 0, (512, 512))

    def sizes(**options):
        groups = param_groups(
            segmenter, OptimOptions(layer_decay=0.8, **options), segmenter.layer_id, 12
        )
        return [(len(g["params"]), sum(p.numel() for p in g["params"])) for g in groups]

    published = sizes()
    assert published[:2] == [(1, 192), (3, 344_448)]
    assert published[2:-2] == [(10, 2_880), (5, 490_032)] * 12
    assert published[-2:] == [(22, 2_278), (13, 784_128)]
    exempt = sizes(no_decay_names=("pos_embed", "cls_token"))
    assert exempt[:2] == [(3, 192 + 1026 * 192), (1, 147_456)] and exempt[2:] == published[2:]
