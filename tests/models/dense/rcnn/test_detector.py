"""Mask R-CNN as an encoder and a detector: taps, losses, answers, files, refusals."""

import json

import pytest
import torch

import limbeck
from limbeck.engine.distributed import ranks_session
from limbeck.errors import UserError
from limbeck.models.dense.build_detector import build_detector
from limbeck.models.dense.detector import rebuild_detector
from limbeck.models.finished import save_student
from limbeck.models.options import DetectorOptions
from limbeck.models.origins.load import load_encoder
from limbeck.models.vit import build_encoder
from limbeck.records import Objects, Tap
from tests.models.dense.test_light_detector import four_images, images, losses_of, objects
from tests.models.families import small_encoder
from tests.processes import start_ranks

SIDE = 64
FAMILIES = ("mae", "tiny-vit", "hiera", "dinov2")


def small(family="mae", num_classes=3, img_size=SIDE, seed=0, **options):
    options = {"width": 16} | options
    return build_detector(
        small_encoder(family), num_classes, DetectorOptions(head="rcnn", **options), seed,
        (img_size, img_size),
    )  # fmt: skip


@pytest.mark.parametrize("cascade", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_taps_losses_and_answers_of_every_encoder(family, cascade):
    detector = small(family, masks=True, cascade=cascade).train()
    facts = detector.facts
    taps = (*detector.loss_taps, Tap("tokens", 0))
    found = detector(images(), None, taps).taps
    assert set(found) == set(taps) and len(facts.level_strides) == 5
    for level, stride in enumerate(facts.level_strides):
        grid = facts.grid_of(stride)
        assert tuple(found[Tap("pyramid", level)].shape[:2]) == (2, 16)
        if min(grid) > 0:
            assert tuple(found[Tap("objectness", level)].shape) == (2, 3, *grid)
            assert tuple(found[Tap("box_deltas", level)].shape) == (2, 12, *grid)
    losses = losses_of(detector, objects(has_masks=True))
    more = {"class_2", "box_2", "class_3", "box_3"} if cascade else set()
    assert set(losses.parts) == {"rpn_objectness", "rpn_boxes", "class", "box", "mask"} | more
    assert losses.total.item() == pytest.approx(sum(v.item() for v in losses.parts.values()))
    losses.total.backward()
    assert all(p.grad is not None for p in detector.parameters())
    detector.eval()
    for one in detector.detect(images(), [(SIDE, SIDE), (20, 30)]):
        assert (one.scores.diff() <= 0).all() and one.masks.shape[1:] == (28, 28)
        assert (one.boxes[:, 2:] > one.boxes[:, :2]).all() and (one.boxes >= 0).all()
        assert len(one.scores) <= 100 and (one.scores > 0.05).all()
    assert (one.boxes <= torch.tensor([30, 20, 30, 20])).all()


def test_an_image_without_objects_teaches_that_there_are_none():  # complaint 5
    detector = small(masks=True, cascade=True).train()
    losses = losses_of(detector, objects(num=0, has_masks=True))
    assert losses.total.isfinite()
    assert losses.parts["box"] == losses.parts["rpn_boxes"] == losses.parts["mask"] == 0
    losses.total.backward()
    for head in detector.boxes:
        # Every class is made less likely: none is taught, the first no more than the others.
        assert (head.classes.bias.grad[:3] > 0).all() and head.classes.bias.grad[3] < 0
        assert head.classes.bias.grad[:3].max() < 1.5 * head.classes.bias.grad[:3].min()
        assert not head.deltas.bias.grad.any()
    assert all(p.grad is not None for p in detector.parameters())


def test_losses_follow_from_the_seeds_alone():
    detector = small().train()
    features = detector(images(), None, detector.loss_taps)
    state = torch.get_rng_state()
    first, again, other = (
        detector.losses(features, objects(), torch.tensor(seeds)).total
        for seeds in ([3, 4], [3, 4], [5, 6])
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_it_learns_to_find_objects():
    torch.manual_seed(0)
    detector = small(num_classes=2, width=24).train()
    seen = torch.zeros(2, 3, SIDE, SIDE)
    seen[0, :, 8:40, 16:56] = 1
    seen[1, 0, 30:60, 4:30] = 1
    boxes = [[16.0, 8, 56, 40], [4, 30, 30, 60]]
    wanted = tuple(
        Objects(torch.tensor([box]), torch.tensor([kind]), (SIDE, SIDE))
        for kind, box in enumerate(boxes)
    )
    optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3)
    for _ in range(25):
        optimizer.zero_grad()
        losses_of(detector, wanted, seen).total.backward()
        optimizer.step()
    detector.eval()
    for kind, (found, box) in enumerate(
        zip(detector.detect(seen, [(SIDE, SIDE)] * 2), boxes, strict=True)
    ):
        assert found.classes[0] == kind and found.scores[0] > 0.5
        assert (found.boxes[0] - torch.tensor(box)).abs().max() < 6


def _half_of_the_images(folder):
    with ranks_session("cpu") as ranks:
        part = slice(2 * ranks.rank, 2 * ranks.rank + 2)
        losses = _losses_of_four(part)
        torch.save(losses, folder / f"{ranks.rank}.pt")


def _losses_of_four(part):
    detector = small(masks=True).train()
    features = detector(images(4)[part], None, detector.loss_taps)
    losses = detector.losses(features, four_images()[part], torch.arange(4)[part])
    losses.total.backward()
    found = {name: p.grad for name, p in detector.named_parameters()}
    return found | {"total": losses.total.detach()}


def test_two_processes_learn_what_one_does(tmp_path):
    expected = _losses_of_four(slice(0, 4))
    pair = start_ranks(_half_of_the_images, tmp_path, folder=tmp_path, count=2)
    done = [each.end() for each in pair]
    assert [each.returncode for each in done] == [0, 0], done
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, value in expected.items():
        torch.testing.assert_close((first[name] + second[name]) / 2, value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_rebuilt_saved_and_loaded(family, tmp_path):
    detector = small(family, masks=True, cascade=family == "mae").eval()
    architecture = json.loads(json.dumps(detector.facts.architecture))
    again = rebuild_detector(architecture)
    again.load_state_dict(detector.state_dict())
    assert again.facts.architecture == detector.facts.architecture
    save_student(detector, tmp_path, {"classes": list("abc")})
    expected = detector.answers(images())
    for loaded in (limbeck.load(tmp_path), load_encoder(tmp_path)):
        for one, other in zip(loaded.answers(images()), expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(("width", "num_heads", "side", "count"), [
    (192, 12, 640, 27652512), (192, 3, 1024, 27728160), (384, 6, 1024, 44502096),
])  # fmt: skip
def test_published_sizes_and_multipliers(width, num_heads, side, count):  # 2.6 and row 21
    kwargs = {
        "img_size": [side, side], "patch_size": 16, "embed_dim": width, "depth": 12,
        "num_heads": num_heads, "mlp_ratio": 4.0, "window": 14, "global_blocks": [2, 5, 8, 11],
        "pos_grid": [14, 14],
    }  # fmt: skip
    with torch.device("meta"):
        encoder = build_encoder({
            "kind": "vit-det", "name": "vit_det", "kwargs": kwargs, "mean": [0.5] * 3,
            "std": [0.5] * 3,
        })  # fmt: skip
        detector = rebuild_detector({
            "name": "x", "kwargs": {
                "img_size": [side, side], "num_classes": 80, "backbone": encoder.facts.architecture,
                "head": "rcnn", "width": 256, "cascade": False, "masks": True,
            },
        })  # fmt: skip
    assert sum(p.numel() for p in detector.parameters()) == count
    rates = {name: 0.7 ** (13 - detector.layer_id(name)) for name, _ in detector.named_parameters()}
    assert rates["backbone.model.pos_embed"] == pytest.approx(0.0096889010, abs=1e-10)
    first = rates["backbone.model.blocks.0.attn.rel_pos_h"]
    assert first == pytest.approx(0.0138412872, abs=1e-10)
    assert rates["backbone.model.blocks.11.attn.qkv.weight"] == pytest.approx(0.7)
    assert all(rate == 1 for name, rate in rates.items() if not name.startswith("backbone"))


def test_refusals():
    with pytest.raises(UserError, match="multiples of 16 pixels, not 40; set --img-size"):
        small(img_size=40)
    with pytest.raises(UserError, match="detector.cascade is for rcnn; leave it out"):
        DetectorOptions(cascade=True)
    with pytest.raises(UserError, match="rcnn has norms of its own, of each place"):
        DetectorOptions(head="rcnn", norm="group")
    with pytest.raises(UserError, match="has 5 levels .0 to 4.; there is no level 5"):
        small()(images(), None, (Tap("objectness", 5),))
    architecture = small().facts.architecture
    kwargs = architecture["kwargs"] | {"width": "wide"}
    with pytest.raises(UserError, match="The architecture of"):
        rebuild_detector(architecture | {"kwargs": kwargs})
