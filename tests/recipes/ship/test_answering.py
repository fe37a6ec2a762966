"""What each kind of network is shown and says, and under which names."""

import numpy as np
import pytest
import torch

from limbeck.data.options import DataOptions
from limbeck.data.skipped import SkippedLog
from limbeck.data.view_makers import eval_maker
from limbeck.models.finished import load_finished
from limbeck.recipes.run.options import CropEvalOptions
from limbeck.recipes.run.probes import centre_crops
from limbeck.recipes.ship.answering import Classes, Names, Samples
from limbeck.recipes.ship.places import open_files
from limbeck.records import Tap
from tests.models.families import small_encoder


def test_crops_and_classes_are_those_of_evaluate(images, classifier):
    network, source = load_finished(classifier), open_files((str(images),))
    samples = Samples(source, 10**6, eval_maker(32, 0.9), True)
    shown = [samples[index] for index in range(8)]
    skipped = SkippedLog(None, 48, 1.0)
    options = CropEvalOptions(crop_ratio=0.9, batch_size=8)
    data = DataOptions(num_workers=0)
    batch = next(iter(centre_crops(network, source, options, data, torch.device("cpu"), skipped)))
    assert torch.equal(torch.stack([each.crop for each in shown]).float() / 255, batch.images)
    assert shown[0].pixels.shape == (202, 224, 3)  # 36 x 40, made fit to be looked at
    with torch.no_grad():
        logits = network(batch.images, None, (Tap("logits"),)).taps[Tap("logits")]
    said = list(Classes(network, "fp32", 2, 8).say(shown))
    for line, own in zip(said, logits.softmax(1), strict=True):
        values, places = own.topk(2)
        names = [network.facts.origin["classes"][place] for place in places]
        assert list(line["classes"]) == names
        assert list(line["classes"].values()) == pytest.approx(values.tolist(), abs=1e-6)


def test_of_two_heads_the_mean_and_each():
    network = small_encoder("cls-distilled").eval()
    side = network.facts.img_size[0]
    samples = Samples(None, 10**6, eval_maker(side, 1.0), False)
    pixels = np.random.default_rng(0).integers(0, 255, (50, 70, 3)).astype(np.uint8)
    sample = samples.of({"image": "x"}, pixels, False)
    (line,) = Classes(network, "fp32", 3, 8).say([sample])
    assert list(line) == ["classes", "of_class_head", "of_distilled_head"]
    with torch.no_grad():
        taps = [Tap(kind) for kind in ("logits", "class_logits", "dist_logits")]
        found = network(sample.crop[None] / 255, None, tuple(taps)).taps
    for own, tap in zip(line.values(), taps, strict=True):
        best = found[tap].softmax(1).max()
        assert next(iter(own.values())) == pytest.approx(float(best), abs=1e-6)


def test_names_of_files():
    name_of = Names(["a/x.png", "b/x.png", "b/x.jpg", "../../evil.png", "/root/y.png", "z"])
    assert name_of({"image": "a/x.png"}) == "a/x.png"
    assert name_of({"image": "b/x.jpg"}) == "b/x.jpg.png"
    assert name_of({"image": "z"}) == "z.png"
    assert name_of({"image": "v.mp4", "frame": 7}) == "v.mp4/000007.png"
    alike = ["x.jpg", "x.png", "x.jpg.png"]
    assert len({Names(alike)({"image": key}) for key in alike}) == 3
    for key in ("../../evil.png", "/root/y.png"):
        assert len(name_of({"image": key})) == 36 and "/" not in name_of({"image": key})
