"""What the service says of an image is what ``limbeck predict`` says; likewise of a file."""

import base64
import hashlib
import io
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data.source import BadImage
from limbeck.errors import UserError
from limbeck.evaluation.options import MapOptions
from limbeck.evaluation.overlay import palette
from limbeck.exports import torch as to_torch
from limbeck.exports.graph import Graph
from limbeck.models.finished import load_finished, read_record
from limbeck.recipes.ship.options import ShownMapOptions
from limbeck.recipes.ship.predict import PredictConfig, predict
from limbeck.recipes.ship.serving import network as module
from limbeck.recipes.ship.serving.network import Asked, Network
from limbeck.recipes.ship.shown import preprocessing_of


@pytest.fixture(autouse=True)
def loaded_at_once(monkeypatch):
    """A file holds the run's name: a true one takes seconds to write, and is of tests/export."""

    def load(file, record, threads):
        graph = Graph(load_finished(file.read_text()), record["input"]["kind"])
        return to_torch.runner(graph, threads)

    monkeypatch.setattr(to_torch, "load", load)


def exported(run, folder, kind="uint8", crop_ratio=1.0, **changes):
    """A file that stands for the run's, and the JSON that ``limbeck export`` has beside it."""
    network, file = load_finished(run), folder / "net.pt2"
    file.write_text(str(run))
    record = {
        "format": "limbeck-export",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "runtime": "torch.export",
        "precision": "fp32",
        "input": {"kind": kind},
        "preprocessing": preprocessing_of(network.facts, crop_ratio),
        "source": {"weight_hash": network.facts.origin["weight_hash"]},
    }
    (folder / "net.pt2.json").write_text(json.dumps(record | changes))
    return file


def predicted(run, files, out):
    """What ``limbeck predict`` says of some files, by name."""
    config = PredictConfig(network=str(run), images=tuple(map(str, files)), out=out)
    lines = (predict(config).out / "predictions.jsonl").read_text().splitlines()
    return {line["image"]: line for line in map(json.loads, lines)}


def test_a_classifier_says_what_predict_says_in_any_company(images, classifier, tmp_path):
    files = sorted((images / "red").iterdir())[:5]
    assert read_record(classifier)[1]["preprocessing"]["crop_ratio"] == 0.875
    expected = predicted(classifier, files, tmp_path / "said")
    network = Network(str(classifier))
    asked = [Asked(file.read_bytes(), top=2) for file in files]
    asked.insert(2, Asked(files[0].read_bytes()[:300]))
    said = network(asked)
    assert isinstance(said.pop(2), BadImage)
    for file, answer in zip(files, said, strict=True):
        whole = expected[file.name]["classes"]
        assert list(answer["classes"]) == list(whole)[:2]
        assert answer["classes"]["red"] == pytest.approx(whole["red"], abs=1e-6)
        # 36 of 40 x 36 pixels, and of those 32 of floor(32 / 0.875) = 36
        assert answer["seen"] == pytest.approx([0.1, 1 / 18, 0.8, 8 / 9])
        assert "attention" not in answer and (answer["width"], answer["height"]) == (40, 36)
    assert network.runtime == "PyTorch"


def test_a_file_answers_in_its_own_preprocessing(images, classifier, tmp_path):
    asked = [Asked((images / "blue" / "000.png").read_bytes())]
    network = Network(str(classifier), exported(classifier, tmp_path, crop_ratio=0.875))
    (said,), (expected,) = network(asked), Network(str(classifier))(asked)
    assert said["classes"] == pytest.approx(expected["classes"], abs=1e-5)
    assert said["seen"] == pytest.approx(expected["seen"])
    assert network.runtime == "torch.export, fp32"
    other = Network(str(classifier), exported(classifier, tmp_path))(asked)[0]
    assert other["seen"] == pytest.approx([0.05, 0, 0.9, 1])  # crop ratio 1


def test_neighbours_attention_and_vectors_of_a_backbone(images, teacher, tmp_path):
    network = Network(str(teacher), gallery=str(images))
    picture = (images / "green" / "003.png").read_bytes()
    said, few = network([Asked(picture, attention=True, embedding=True), Asked(picture, top=1)])
    assert len(said["neighbours"]) == 5 and len(few["neighbours"]) == 1
    assert next(iter(said["neighbours"].items())) == ("green/003.png", pytest.approx(1, abs=1e-5))
    assert len(said["embedding"]) == 32 and "classes" not in said
    assert np.shape(said["attention"]) == (4, 4) and np.max(said["attention"]) == 1
    assert "attention" not in few
    small = Image.open(io.BytesIO(network.picture("green/003.png")))
    assert small.size == (128, 128) and small.format == "JPEG"
    assert network.picture("../conftest.py") is None
    exact = Network(str(teacher), exported(teacher, tmp_path, "float"), gallery=str(images))
    assert exact([Asked(picture)])[0]["neighbours"] == pytest.approx(said["neighbours"], abs=1e-4)


def test_masks_by_pytorch_and_by_a_file(scenes, segmenter, tmp_path):
    file = scenes / "images" / "000.png"
    expected = predicted(segmenter, [file], tmp_path / "said")["000.png"]
    truth = np.array(Image.open(tmp_path / "said" / expected["mask"]))
    out = exported(segmenter, tmp_path, "float")
    for network in (Network(str(segmenter)), Network(str(segmenter), out)):
        (said, bad) = network([Asked(file.read_bytes()), Asked(b"x")])
        assert isinstance(bad, BadImage) and (said["width"], said["height"]) == (48, 40)
        mask = Image.open(io.BytesIO(base64.b64decode(said["mask"])))
        assert mask.mode == "P" and (np.array(mask) == truth).mean() > 0.99
        assert said["shares"] == pytest.approx(expected["shares"], abs=0.01)
        assert list(said["shares"]) == ["ground", "box"]
        assert said["colours"]["box"] == f"#{bytes(palette(2)[1]).hex()}"
    with pytest.raises(UserError, match="leave --gallery out"):
        Network(str(segmenter), gallery=str(scenes))
    with pytest.raises(UserError, match=r"add --maps\.mode slide"):
        Network(str(segmenter), out, maps=ShownMapOptions(mode="whole"))


def test_boxes_by_pytorch_and_by_a_file(objects, detector, tmp_path):
    file = objects / "000.png"
    expected = predicted(detector, [file], tmp_path / "said")["000.png"]["boxes"]
    out = exported(detector, tmp_path, "uint8")
    for network in (Network(str(detector)), Network(str(detector), out)):
        (said, bad) = network([Asked(file.read_bytes()), Asked(b"x")])
        assert isinstance(bad, BadImage) and (said["width"], said["height"]) == (48, 40)
        assert len(said["boxes"]) == len(expected) > 0
        for own, other in zip(said["boxes"], expected, strict=True):
            assert own["class"] == other["class"]
            assert own["score"] == pytest.approx(other["score"], abs=1e-3)
            assert own["box"] == pytest.approx(other["box"], abs=0.05)
        assert said["colours"].keys() == {each["class"] for each in expected}
    # int8, say, is less sure of itself, and its file says from when on it is right.
    least = {"proof": {"thresholds": {"file": {"threshold": 1.0}}}}
    (said,) = Network(str(detector), exported(detector, tmp_path, **least))([
        Asked(file.read_bytes())
    ])  # fmt: skip
    assert said["boxes"] == []
    with pytest.raises(UserError, match="A detector has no vector of an image"):
        Network(str(detector), gallery=str(objects))


def test_a_segmenter_is_shown_images_as_its_run_was_scored(segmenter, tmp_path):
    shutil.copytree(segmenter, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "student.json").read_text())
    record["config"]["evaluation"] |= {"mode": "whole", "flip": True}
    (tmp_path / "run" / "student.json").write_text(json.dumps(record))
    network = Network(str(tmp_path / "run"), maps=ShownMapOptions(flip=False))
    assert network.maps == MapOptions(mode="whole")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": {"weight_hash": "0" * 64}}, "is of other weights than"),
        ({"sha256": "0" * 64}, r"is not the file that net\.pt2\.json describes"),
        ({"format": "other"}, "is not the file"),
        ({"unfinished": True}, "of an export that was stopped; export it again"),
    ],
)
def test_a_file_of_something_else_is_refused(changes, message, classifier, tmp_path):
    file = exported(classifier, tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        Network(str(classifier), file)
    (tmp_path / "net.pt2.json").unlink()
    with pytest.raises(UserError, match=r"There is no .*net\.pt2\.json"):
        Network(str(classifier), file)


def test_a_gallery_in_which_nothing_can_be_read(classifier, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="Not one image of"):
        Network(str(classifier), gallery=str(tmp_path))


def test_masks_of_more_classes_than_a_png_has(segmenter, monkeypatch):
    monkeypatch.setattr(module, "MOST_CLASSES", 1)
    with pytest.raises(UserError, match="more than 1 classes"):
        Network(str(segmenter))


def test_a_segmenter_in_a_file_gives_the_maps_that_are_asked_for():
    facts = SimpleNamespace(mean=(0.5, 0.5, 0.5))
    of = SimpleNamespace(facts=facts, run=lambda images: {"logits": images + 1},
                         graph=SimpleNamespace(feed=lambda images: images.numpy()))  # fmt: skip
    said = module._InFile(of)(torch.zeros(2), None, (module.Tap("logits"),))
    assert said.taps[module.Tap("logits")].tolist() == [1, 1]
