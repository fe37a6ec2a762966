"""The light detector as an encoder and a detector: taps, losses, answers, files, refusals."""

import json

import pytest
import torch

import limbeck
from limbeck.engine.distributed import ranks_session
from limbeck.errors import NotFiniteError, UserError
from limbeck.models.dense.build_detector import build_detector
from limbeck.models.dense.detector import rebuild_detector
from limbeck.models.finished import load_student, save_student
from limbeck.models.options import DetectorOptions
from limbeck.models.origins.load import load_encoder
from limbeck.records import Objects, Tap
from tests.models.families import small_encoder
from tests.processes import start_ranks

SIDE = 64
FAMILIES = ("mae", "tiny-vit", "hiera", "dinov2")


def small(family="mae", num_classes=3, img_size=SIDE, seed=0, **options):
    options = {"width": 16} | options
    return build_detector(
        small_encoder(family), num_classes, DetectorOptions(**options), seed, (img_size, img_size)
    )


def images(count=2):
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def objects(count=2, has_masks=False, num=2):
    boxes = torch.tensor([[4.0, 4, 40, 36], [30, 30, 62, 60]])[:num]
    masks = None
    if has_masks:
        masks = torch.zeros(num, SIDE, SIDE, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = True
    return tuple(
        Objects(boxes, torch.tensor([0, 2])[:num], (SIDE, SIDE), masks) for _ in range(count)
    )


def losses_of(detector, wanted, seen=None):
    seen = images(len(wanted)) if seen is None else seen
    features = detector(seen, None, detector.loss_taps)
    return detector.losses(features, wanted, torch.arange(len(wanted)))


@pytest.mark.parametrize("family", FAMILIES)
def test_taps_losses_and_answers_of_every_encoder(family):
    detector = small(family, masks=True).train()
    facts = detector.facts
    assert facts.has_boxes and len(facts.level_strides) == 3
    taps = (*detector.loss_taps, Tap("objectness", 1), Tap("tokens", 0))
    found = detector(images(), None, taps).taps
    assert set(found) == set(taps)
    for level, stride in enumerate(facts.level_strides):
        grid = (2, *facts.grid_of(stride))
        assert tuple(found[Tap("class_maps", level)].shape) == (grid[0], 3, *grid[1:])
        assert tuple(found[Tap("box_maps", level)].shape) == (grid[0], 4, *grid[1:])
        assert tuple(found[Tap("pyramid", level)].shape) == (2, 16, *grid[1:])
        assert (found[Tap("box_maps", level)] > 0).all()
    likeliest = found[Tap("class_maps", 1)].amax(1, keepdim=True)
    assert torch.equal(found[Tap("objectness", 1)], likeliest)
    losses = losses_of(detector, objects(has_masks=True))
    assert set(losses.parts) == {"class", "box", "one_class", "one_box", "mask"}
    assert losses.total.item() == pytest.approx(sum(v.item() for v in losses.parts.values()))
    losses.total.backward()
    assert all(p.grad is not None for p in detector.parameters())
    detector.eval()
    for one in detector.detect(images(), [(SIDE, SIDE), (20, 30)]):
        assert (one.scores.diff() <= 0).all() and one.masks.shape[1:] == (28, 28)
        assert (one.boxes[:, 2:] > one.boxes[:, :2]).all() and (one.boxes >= 0).all()
    assert (one.boxes <= torch.tensor([30, 20, 30, 20])).all()


def test_an_image_without_objects_teaches_that_there_are_none():
    detector = small(masks=True).train()
    losses = losses_of(detector, objects(num=0, has_masks=True))
    assert losses.total.isfinite() and losses.parts["box"] == losses.parts["one_box"] == 0
    losses.total.backward()
    for head in (*detector.many, *detector.one):
        # Every class is made less likely: none is taught, the first no more than the others.
        assert (head.classes.bias.grad > 0).all()
        assert head.classes.bias.grad.max() < 1.5 * head.classes.bias.grad.min()
        assert head.sides.bias.grad.abs().max() == 0
    assert all(p.grad is not None for p in detector.parameters())


def test_it_learns_to_find_one_object_once():
    torch.manual_seed(0)
    detector = small(num_classes=2).train()
    seen = torch.zeros(2, 3, SIDE, SIDE)
    seen[0, :, 8:40, 16:56] = 1
    seen[1, 0, 30:60, 4:30] = 1
    boxes = [[16.0, 8, 56, 40], [4, 30, 30, 60]]
    wanted = tuple(
        Objects(torch.tensor([box]), torch.tensor([kind]), (SIDE, SIDE))
        for kind, box in enumerate(boxes)
    )
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        losses_of(detector, wanted, seen).total.backward()
        optimizer.step()
    detector.eval()
    for kind, (found, box) in enumerate(
        zip(detector.detect(seen, [(SIDE, SIDE)] * 2), boxes, strict=True)
    ):
        assert found.classes[0] == kind and found.scores[0] > 0.5
        assert (found.boxes[0] - torch.tensor(box)).abs().max() < 4
        assert found.scores[1] < 0.5 * found.scores[0]  # no double


def _half_of_the_images(folder):
    with ranks_session("cpu") as ranks:
        detector = small(masks=True).train()
        wanted = four_images()[2 * ranks.rank : 2 * ranks.rank + 2]
        seen = images(4)[2 * ranks.rank : 2 * ranks.rank + 2]
        losses = losses_of(detector, wanted, seen)
        losses.total.backward()
        found = {name: p.grad for name, p in detector.named_parameters()}
        torch.save(found | {"total": losses.total.detach()}, folder / f"{ranks.rank}.pt")


def four_images():
    """The first two have two objects each, the third one, the last none."""
    return (*objects(2, True), *objects(1, True, 1), *objects(1, True, 0))


def test_two_processes_learn_what_one_does(tmp_path):
    detector = small(masks=True).train()
    losses = losses_of(detector, four_images(), images(4))
    losses.total.backward()
    pair = start_ranks(_half_of_the_images, tmp_path, folder=tmp_path, count=2)
    done = [each.end() for each in pair]
    assert [each.returncode for each in done] == [0, 0], done
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    total = (first["total"] + second["total"]) / 2
    torch.testing.assert_close(total, losses.total.detach(), rtol=1e-4, atol=1e-5)
    for name, parameter in detector.named_parameters():
        mean = (first[name] + second[name]) / 2
        torch.testing.assert_close(mean, parameter.grad, rtol=1e-3, atol=1e-5)


def test_class_weights_weigh_the_classes():
    detector = small().train()
    plain = losses_of(detector, objects()).parts
    detector.class_weights = torch.tensor([2.0, 2.0, 2.0])
    twice = losses_of(detector, objects()).parts
    assert twice["class"].item() == pytest.approx(2 * plain["class"].item(), rel=1e-5)
    assert twice["box"].item() == pytest.approx(plain["box"].item(), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("masks", [False, True])
def test_it_is_rebuilt_saved_and_loaded(family, masks, tmp_path):
    detector = small(family, masks=masks, norm="group").eval()
    architecture = json.loads(json.dumps(detector.facts.architecture))
    again = rebuild_detector(architecture)
    again.load_state_dict(detector.state_dict())
    assert again.facts.architecture == detector.facts.architecture
    save_student(detector, tmp_path, {"classes": list("abc")})
    expected = detector.answers(images())
    for loaded in (limbeck.load(tmp_path), load_encoder(tmp_path)):
        for one, other in zip(loaded.answers(images()), expected, strict=True):
            assert torch.equal(one, other)
        assert loaded.facts.origin["classes"] == list("abc")
    with pytest.raises(UserError, match="is a detector, and here an encoder or a classifier"):
        load_student(tmp_path)
    with pytest.raises(UserError, match="is a detector of 3 classes in images of 64 px"):
        load_encoder(tmp_path, img_size=(32, 32))


def test_a_frozen_encoder_stays_as_it_is():
    detector = small(freeze=True).train()
    assert not detector.backbone.training and detector.many.training
    losses_of(detector, objects()).total.backward()
    assert all(p.grad is None for p in detector.backbone.parameters())


@pytest.mark.parametrize("name", ["classes", "sides"])
def test_answers_that_are_not_finite_do_not_vanish(name):
    detector = small()
    with torch.no_grad():
        getattr(detector.one[0], name).weight.fill_(torch.nan)
    with pytest.raises(NotFiniteError, match="not finite"):
        detector.detect(torch.rand(1, 3, *detector.facts.img_size), [detector.facts.img_size])


def test_refusals():
    with pytest.raises(UserError, match="A detector sees squares, not 64 x 32"):
        build_detector(small_encoder("mae"), 3, DetectorOptions(), 0, (32, 64))
    with pytest.raises(UserError, match="A detector sees whole images; leave masking out"):
        small()(images(), torch.zeros(2, 3, dtype=torch.int64), (Tap("pyramid", 0),))
    with pytest.raises(UserError, match="has 3 levels .0 to 2.; there is no level 3"):
        small()(images(), None, (Tap("pyramid", 3),))
    architecture = small().facts.architecture
    with pytest.raises(UserError, match="states a head that is none"):
        rebuild_detector(architecture | {"kwargs": {"head": "none"}})
