"""``limbeck export``: a file and its proof, or neither; and what is caught before."""

import hashlib
import json
import math
from dataclasses import replace

import pytest
import torch

from limbeck.data.options import DataOptions
from limbeck.errors import RunError, UserError
from limbeck.exports import measure as measuring
from limbeck.exports import timm as to_timm
from limbeck.exports import torch as to_torch
from limbeck.exports.formats import has_packages
from limbeck.exports.graph import Graph
from limbeck.models.dense.build_detector import build_detector
from limbeck.models.finished import save_student
from limbeck.models.options import DetectorOptions
from limbeck.recipes.ship import export as verb
from limbeck.recipes.ship.export import ExportConfig, check_place, digest_of, export, report
from limbeck.recipes.ship.options import Int8Options, MeasureOptions, ToleranceOptions
from tests.models.families import small_encoder

FEW = MeasureOptions(batch_size=2, num_runs=1)


@pytest.fixture(autouse=True)
def measured_here(monkeypatch, request):
    """In this process, on one thread: another one takes seconds to start."""

    def here(name, file, record, batch_sizes, num_runs):
        asked = {"name": name, "file": str(file), "record": record}
        return measuring.measured(asked | {"batch_sizes": batch_sizes, "num_runs": num_runs})

    if "slow" not in request.keywords:
        monkeypatch.setattr(measuring, "measure", here)
        monkeypatch.setattr(measuring, "num_cores", lambda: 1)


def config_of(run, tmp_path, to="timm", **changes):
    suffix = {"timm": "safetensors", "torch": "pt2", "onnx": "onnx", "openvino": "xml"}[to]
    values = {"network": str(run), "to": to, "out": tmp_path / f"net.{suffix}", "measure": FEW}
    return ExportConfig(**values | changes)


def test_a_classifier_for_timm_with_its_proof(classifier, tmp_path):
    done = export(config_of(classifier, tmp_path))
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "net.safetensors", "net.safetensors.json"
    ]  # fmt: skip
    said = json.loads((tmp_path / "net.safetensors.json").read_text())
    assert said == done.record
    assert said["classes"] == ["blue", "green", "red"]
    assert said["input"]["kind"] == "normalised" and said["input"]["shape"] == [None, 3, 32, 32]
    assert said["outputs"] == {"logits": {"dtype": "float32", "shape": [None, 3]}}
    own = json.loads((classifier / "student.json").read_text())
    assert said["source"]["weight_hash"] == own["weight_hash"]
    assert said["lineage"] == own["lineage"] == []  # from scratch, here
    proof = said["proof"]
    assert proof["num_images"] == 12 and proof["outputs"]["logits"]["agreement"] == 1
    assert proof["score"]["pytorch"] == proof["score"]["file"] > 0.8
    assert proof["measured"].keys() == proof["pytorch"].keys()
    text = report(done)
    assert "Against PyTorch in fp32, on 12 images" in text and "top-1: 100.00 %" in text
    assert "batch 2, 1 thread" in text


def test_a_backbone_for_torch_with_pixels_in(teacher, unlabelled, tmp_path):
    data = DataOptions(root=str(unlabelled), num_workers=0)
    done = export(config_of(
        teacher, tmp_path, "torch", input="uint8", sizes="any", num_images=3, data=data
    ))  # fmt: skip
    assert done.record["input"]["shape"] == [None, None, None, 3]
    assert done.record["input"]["multiple_of"] == 8
    assert done.record["proof"]["num_images"] == 3 and not done.record["proof"]["score"]
    images = torch.zeros(1, 40, 64, 3, dtype=torch.uint8)
    said = torch.export.load(done.file).module()(images)
    assert said["tokens"].shape == (1, 1 + 5 * 8, 32) and said["embedding"].shape == (1, 32)
    assert "uint8 (N, H, W, 3)" in report(done)


def test_a_segmenter_for_torch(segmenter, tmp_path):
    done = export(config_of(segmenter, tmp_path, "torch"))
    proof = done.record["proof"]
    assert proof["outputs"]["mask"]["agreement"] == 1
    assert proof["score"]["name"] == "mIoU"
    with pytest.raises(UserError, match="timm can't hold a segmenter"):
        export(config_of(segmenter, tmp_path))
    with pytest.raises(UserError, match="crop_ratio has no effect"):
        export(config_of(segmenter, tmp_path, "torch", overwrite=True, crop_ratio=0.5))


def wrong_preprocessing(monkeypatch):
    real = Graph.forward

    def forward(self, images):
        # Pixels that were taken for 0..1, the commonest of all mistakes.
        return real(self, images if self.input_kind != "uint8" else (images / 255).byte())

    monkeypatch.setattr(Graph, "forward", forward)


def wrong_layer(monkeypatch):
    real = to_torch.write

    def write(graph, file, precision):
        with torch.no_grad():
            graph.encoder.model.blocks[1].mlp.fc2.weight.mul_(1.5)
        return real(graph, file, precision)

    monkeypatch.setattr(to_torch, "write", write)


def test_a_detector_for_torch_with_its_score(detector, tmp_path):
    done = export(config_of(detector, tmp_path, "torch"))
    said, record = done.record, json.loads((detector / "student.json").read_text())
    assert {name: each["shape"] for name, each in said["outputs"].items()} == {
        "boxes": [None, 100, 4], "scores": [None, 100], "classes": [None, 100]
    }  # fmt: skip
    proof = said["proof"]
    assert proof["outputs"]["boxes"] == {"agreement": 1}
    assert proof["score"]["name"] == "AP50" and proof["score"]["images"] == 6
    assert proof["score"]["file"] == proof["score"]["pytorch"]
    # As the run scored it, but for boxes in the pixels of what is shown.
    assert proof["score"]["file"] == pytest.approx(record["scores"]["ap50"], abs=0.02)
    assert "left, top, right and bottom" in said["preprocessing"]["words"]
    boxes, scores, classes = (
        torch.export.load(done.file).module()(torch.rand(3, 3, 48, 48)).values()
    )
    assert boxes.shape == (3, 100, 4) and (scores.diff() <= 0).all()
    assert "100 % of the boxes the same" in report(done)
    with pytest.raises(UserError, match="timm can't hold a detector: timm has no detectors"):
        export(config_of(detector, tmp_path))
    with pytest.raises(UserError, match="which sees whole images"):
        export(config_of(detector, tmp_path, "torch", crop_ratio=0.5, out=tmp_path / "b.pt2"))
    with pytest.raises(UserError, match="A detector sees squares of one size"):
        export(config_of(detector, tmp_path, "torch", sizes="any", out=tmp_path / "b.pt2"))


def test_rcnn_is_not_exported(tmp_path):
    options = DetectorOptions(head="rcnn", width=8)
    rcnn = build_detector(small_encoder("mae"), 2, options, 0, (64, 64))
    save_student(rcnn, tmp_path / "rcnn", {"classes": ["a", "b"]})
    with pytest.raises(UserError, match=r"torch.export can't hold an rcnn detector.*head light"):
        export(config_of(tmp_path / "rcnn", tmp_path, "torch"))


def test_a_detector_on_images_of_which_nothing_is_known(detector, images, tmp_path):
    data = DataOptions(root=str(images), num_workers=0)
    done = export(config_of(detector, tmp_path, "torch", data=data, num_images=4))
    assert done.record["proof"]["num_images"] == 4 and done.record["proof"]["score"] == {}


def test_wrong_preprocessing_is_caught(classifier, tmp_path, monkeypatch):
    wrong_preprocessing(monkeypatch)
    with pytest.raises(RunError, match=r"'logits' differs by .* Worst images: \w+/\d+\.png"):
        export(config_of(classifier, tmp_path, "torch", input="uint8"))
    assert not list(tmp_path.iterdir())


def test_a_wrong_layer_is_caught_and_named(classifier, tmp_path, monkeypatch):
    wrong_layer(monkeypatch)
    with pytest.raises(RunError, match=r"The first part that differs: block 1\."):
        export(config_of(classifier, tmp_path, "torch"))
    assert not list(tmp_path.iterdir())


def test_a_tolerance_of_one_s_own(classifier, tmp_path, monkeypatch):
    real = to_timm.write

    def write(graph, file, precision):
        graph.encoder.model.head.weight.data.mul_(1.02)
        return real(graph, file, precision)

    monkeypatch.setattr(to_timm, "write", write)
    with pytest.raises(RunError, match="tolerance 0.001"):
        export(config_of(classifier, tmp_path))
    loose = ToleranceOptions(difference=5.0, agreement=0.0, loss=100)
    done = export(config_of(classifier, tmp_path, tolerance=loose))
    assert done.record["proof"]["tolerance"] == {"difference": 5, "agreement": 0, "loss": 100}
    assert done.record["proof"]["outputs"]["logits"]["relative"] > 1e-3


def test_nothing_of_somebody_else_is_replaced(classifier, tmp_path):
    config = config_of(classifier, tmp_path)
    config.out.write_bytes(b"mine")
    with pytest.raises(UserError, match="exists; choose another name"):
        export(config)
    with pytest.raises(UserError, match="is of no export that net.safetensors.json describes"):
        export(replace(config, overwrite=True))
    assert config.out.read_bytes() == b"mine"
    config.out.unlink()
    export(config)
    export(replace(config, overwrite=True))
    config.out.write_bytes(b"mine again")
    with pytest.raises(UserError, match="is of no export"):
        export(replace(config, overwrite=True))
    (tmp_path / "net.bin").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"net\.bin exists"):
        check_place(tmp_path / "net.xml", overwrite=False)
    check_place(tmp_path / "net.onnx", overwrite=False)


def test_the_weights_beside_an_xml_are_of_the_export(tmp_path):
    file, weights = tmp_path / "net.xml", tmp_path / "net.bin"
    file.write_bytes(b"graph")
    assert digest_of(file) == "" == digest_of(tmp_path / "net.onnx")
    weights.write_bytes(b"weights")
    assert digest_of(file) == hashlib.sha256(b"graphweights").hexdigest()
    assert digest_of(weights) == hashlib.sha256(b"weights").hexdigest()
    record = {"format": "limbeck-export", "sha256": digest_of(file)}
    (tmp_path / "net.xml.json").write_text(json.dumps(record))
    check_place(file, overwrite=True)
    weights.write_bytes(b"others")
    with pytest.raises(UserError, match=r"is of no export that net\.xml\.json describes"):
        check_place(file, overwrite=True)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_killed_while_it_is_written_can_be_made_again(
    place, classifier, tmp_path, monkeypatch
):
    config = config_of(classifier, tmp_path)
    before = export(config).record if place == 2 else None
    written = []

    def killed(real):
        def write(*asked):
            if len(written) == max(1, place % 2 + 1):
                raise KeyboardInterrupt
            written.append(asked[0].name)
            real(*asked)

        return write

    with monkeypatch.context() as patch:
        for name in ("write_json", "write_bytes"):
            patch.setattr(verb, name, killed(getattr(verb, name)))
        with pytest.raises(KeyboardInterrupt):
            export(replace(config, overwrite=place == 2))
    assert json.loads((tmp_path / "net.safetensors.json").read_text())["unfinished"]
    with pytest.raises(UserError, match="is of an export that was stopped; make it again with"):
        export(config)
    done = export(replace(config, overwrite=True))
    assert "unfinished" not in done.record
    assert before is None or before["sha256"] == done.record["sha256"]


def test_what_fails_while_it_is_proven_leaves_nothing(classifier, tmp_path, monkeypatch):
    def fails(*asked):
        raise RunError("no process")

    monkeypatch.setattr(measuring, "measure", fails)
    with pytest.raises(RunError, match="no process"):
        export(config_of(classifier, tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": ""}, "run: limbeck export RUN"),
        ({"network": "nowhere"}, "nowhere does not exist"),
        ({"to": "onnx", "precision": "bf16"}, "ONNX can't hold bf16"),
        ({"precision": "int8"}, "timm can't hold int8: timm computes in floats"),
        ({"int8": Int8Options(repair=5)}, "int8 has no effect without --precision int8"),
        ({"sizes": "any"}, "timm can't hold a network for images of any size"),
        ({"input": "uint8"}, "--input uint8 can't be had"),
        ({"data": DataOptions(max_bad_ratio=0.5)}, "data has no effect without --data"),
        ({"data": DataOptions(root="nowhere")}, "nowhere does not exist"),
        ({"out": "x.onnx"}, r"x\.onnx is no name of such a file; let it end in \.safetensors"),
        ({"out": "nowhere/x.safetensors"}, "There is no folder nowhere"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_read(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        export(ExportConfig(**{"network": str(tmp_path), "to": "timm"} | changes))


def test_pool_is_of_backbones(classifier, tmp_path):
    with pytest.raises(UserError, match="pool has no effect"):
        export(config_of(classifier, tmp_path, pool="cls"))


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_other_runtimes_with_pixels_in(to, classifier, tmp_path):
    if not has_packages(to):
        pytest.skip("the extra export is not installed")
    done = export(config_of(classifier, tmp_path, to, input="uint8"))
    proof = done.record["proof"]
    assert proof["outputs"]["logits"]["agreement"] == 1
    assert math.isclose(proof["score"]["file"], proof["score"]["pytorch"])
    assert ("opset" in done.record) == (to == "onnx")
    names = {each.name for each in tmp_path.iterdir()}
    assert names == {done.file.name, f"{done.file.name}.json", *(["net.bin"] * (to != "onnx"))}


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_a_detector_in_int8(to, detector, tmp_path):
    done = export(config_of(
        detector, tmp_path, to, precision="int8",
        tolerance=ToleranceOptions(agreement=0.5, loss=20.0, difference=1.0),
    ))  # fmt: skip
    assert done.record["proof"]["score"]["name"] == "AP50"
