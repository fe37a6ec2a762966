"""Mask R-CNN as an encoder and a detector: taps, losses, answers, files, refusals."""

import json

import pytest
import torch

import limbeck
from limbeck.errors import NotFiniteError, UserError
from limbeck.methods.boxes import FeatureRichness
from limbeck.methods.distiller import Distiller
from limbeck.methods.options import FeatureRichnessOptions
from limbeck.methods.teacher import Teacher
from limbeck.models.build import build_student
from limbeck.models.dense.build_detector import build_detector
from limbeck.models.dense.detector import rebuild_detector
from limbeck.models.dense.rcnn import regions, rpn
from limbeck.models.finished import save_student
from limbeck.models.options import DetectorOptions, StudentOptions
from limbeck.models.origins.load import load_encoder
from limbeck.models.vit import build_encoder
from limbeck.records import Objects, Tap
from limbeck.tasks.detection import Detection
from tests.methods.test_boxes import batch_of
from tests.models.dense.test_light_detector import four_images, images, losses_of, objects
from tests.models.families import small_encoder

SIDE = 64
FAMILIES = ("mae", "tiny-vit", "hiera")


def small(family="mae", num_classes=3, img_size=SIDE, seed=0, **options):
    options = {"width": 16} | options
    return build_detector(
        small_encoder(family), num_classes, DetectorOptions(head="rcnn", **options), seed,
        (img_size, img_size),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("family", "cascade"), [*[(each, False) for each in FAMILIES], ("mae", True)]
)
def test_taps_losses_and_answers_of_every_encoder(family, cascade):
    detector = small(family, masks=True, cascade=cascade).train()
    facts = detector.facts
    taps = (*detector.loss_taps, Tap("tokens", 0))
    found = detector(images(), None, taps).taps
    assert set(found) == set(taps) and len(facts.level_strides) == 5
    for level, stride in enumerate(facts.level_strides):
        grid = facts.grid_of(stride)
        assert tuple(found[Tap("pyramid", level)].shape[:2]) == (2, 16)
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


def test_it_learns():
    torch.manual_seed(0)
    detector = small(num_classes=2, img_size=32).train()
    seen = torch.zeros(1, 3, 32, 32)
    seen[0, :, 4:20, 8:28] = 1
    wanted = (Objects(torch.tensor([[8.0, 4, 28, 20]]), torch.tensor([1]), (32, 32)),)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3)
    totals = []
    for _ in range(8):
        optimizer.zero_grad()
        losses = losses_of(detector, wanted, seen)
        losses.total.backward()
        optimizer.step()
        totals.append(losses.total.item())
    assert totals[-1] < 0.6 * totals[0]


def test_two_processes_learn_what_one_does(monkeypatch):
    def run(part):
        detector = small(masks=True).train()
        features = detector(images(4)[part], None, detector.loss_taps)
        losses = detector.losses(features, four_images()[part], torch.arange(4)[part])
        losses.total.backward()
        found = {name: p.grad for name, p in detector.named_parameters()}
        return found | {"total": losses.total.detach()}

    expected, halves = run(slice(1, 3)), (slice(1, 2), slice(2, 3))
    counts = []
    monkeypatch.setattr(regions, "mean_over_ranks", lambda v: counts.append(v.clone()) or v)
    for part in halves:
        run(part)
    means = [(one + other) / 2 for one, other in zip(counts[:2], counts[2:], strict=True)] * 2
    monkeypatch.setattr(regions, "mean_over_ranks", lambda v: means.pop(0))
    first, second = map(run, halves)
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


def test_a_teacher_is_asked_for_no_proposals(monkeypatch):  # FRS
    student, teacher = small().train(), small(width=24, seed=1, cascade=True)
    method = FeatureRichness(FeatureRichnessOptions(), student.facts, teacher.facts)
    method.after_step(500, 1000)
    asked = []
    real = rpn.propose
    monkeypatch.setattr(
        rpn, "propose", lambda *args, **more: asked.append(args) or real(*args, **more)
    )
    taught = Distiller(student, method, Teacher(teacher, torch.device("cpu")), Detection(student))
    losses = taught.train()(batch_of())
    own = {"rpn_objectness", "rpn_boxes", "class", "box"}
    assert set(losses.parts) == {*own, "richness", "objectness"} and len(asked) == 2
    losses.total.backward()
    assert all(p.grad is not None for p in taught.parameters()) and not teacher.training


@pytest.mark.parametrize("name", ["rpn.objectness", "boxes.0.classes", "boxes.0.deltas"])
def test_answers_that_are_not_finite_do_not_vanish(name):
    detector = small()
    with torch.no_grad():
        detector.get_submodule(name).weight.fill_(torch.nan)
    with pytest.raises(NotFiniteError, match="not finite"):
        detector.detect(torch.rand(1, 3, *detector.facts.img_size), [detector.facts.img_size])


def test_refusals():
    shape = "vit_tiny:patch_size=6:img_size=36:embed_dim=32:depth=1:num_heads=2"
    plain = build_student(StudentOptions(name=shape), seed=0)
    with pytest.raises(UserError, match="patches of 6 pixels, and rcnn needs a multiple of 4"):
        build_detector(plain, 3, DetectorOptions(head="rcnn"), 0)
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
