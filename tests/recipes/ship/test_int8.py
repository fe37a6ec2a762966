"""int8 from end to end: attempts, the layers that stay in fp32, the repair, and what is caught."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from limbeck.data.options import DataOptions
from limbeck.errors import RunError, UserError
from limbeck.exports import rounding
from limbeck.exports.formats import has_packages
from limbeck.exports.gate import TOLERANCES, Comparison
from limbeck.exports.graph import Graph
from limbeck.models.finished import load_finished
from limbeck.recipes.ship.export import export, report
from limbeck.recipes.ship.int8 import (
    FAR,
    Trials,
    mean_difference,
    num_wanted,
    short,
    worst_layers,
    write_int8,
)
from limbeck.recipes.ship.options import Int8Options
from tests.exports.kinds import small
from tests.recipes.ship.test_export import config_of, measured_here  # noqa: F401

FEW = Int8Options(num_images=12)


@pytest.fixture
def openvino():
    if not has_packages("openvino"):
        pytest.skip("the extra export is not installed")


def test_a_classifier_and_its_proof(openvino, classifier, tmp_path, capfd):
    done = export(config_of(classifier, tmp_path, "openvino", precision="int8", int8=FEW))
    assert capfd.readouterr() == ("", "")  # the tools are silent
    names = {each.name for each in tmp_path.iterdir()}
    assert names == {"net.xml", "net.bin", "net.xml.json"}
    told, proof = done.record["int8"], done.record["proof"]
    assert told["kept"] == [] and told["images"] == 12 and not told["repair"]
    assert "blocks.0.mlp.fc1" in told["sensitivity"] and "head" in told["sensitivity"]
    assert proof["outputs"]["logits"]["agreement"] == 1
    assert proof["tolerance"]["difference"] == TOLERANCES["int8"].difference
    assert proof["score"]["file"] > 0.8
    assert proof["thresholds"].keys() == {"pytorch", "file", "old_f1", "temperature"}
    text = report(done)
    assert "int8 of all" in text and "Accept answers from a confidence of" in text


def test_a_planted_collapse_is_caught_and_nothing_is_written(
    openvino, classifier, tmp_path, monkeypatch
):
    real = Trials.attempt

    def after_the_attempts(self, of, kept):  # they pass: what is then written is another file
        found = real(self, of, kept)
        graph = Graph(load_finished(classifier))
        graph.encoder.model.head.weight.data.mul_(-1)
        place = self.done[of.words, tuple(kept)][0]
        self.module.write(graph, place / self.name, "fp32")
        return found

    monkeypatch.setattr(Trials, "attempt", after_the_attempts)
    with pytest.raises(RunError, match=r"(?s)does not answer as PyTorch does.*Worst images: \w+/.*"
                       r"Layers that int8 hurts most.*--int8\.repair 300"):  # fmt: skip
        export(config_of(classifier, tmp_path, "openvino", precision="int8", int8=FEW))
    assert not list(tmp_path.iterdir())


def outlier(size):
    """A network whose second block has a channel that is so large that the rest is rounded off."""
    encoder = small("augreg")
    mlp = encoder.model.blocks[1].mlp
    with torch.no_grad():
        mlp.fc1.weight[0], mlp.fc1.bias[0], mlp.fc2.weight[:, 0] = 0, size, 0
    return Graph(encoder)


IMAGES = torch.rand(48, 3, 32, 32, generator=torch.Generator().manual_seed(3))
NEAR = replace(TOLERANCES["int8"], difference=0.2, agreement=0.5)


def test_the_layer_that_hurts_stays_in_fp32(openvino, tmp_path):
    told = write_int8("openvino", outlier(3000), tmp_path / "net.xml", IMAGES[:16], FEW, NEAR)
    assert told["int8"]["kept"] == ["blocks.1.mlp.fc2"]
    assert next(iter(told["int8"]["sensitivity"])) == "blocks.1.mlp.fc2"
    assert {each.name for each in tmp_path.iterdir()} == {"net.xml", "net.bin"}


@pytest.mark.slow
def test_where_half_of_the_layers_do_not_do_the_repair_is_named(openvino, tmp_path):
    strict = replace(NEAR, difference=1e-6)
    with pytest.raises(RunError, match=r"even with half of the layers in floats: 'logits' differs.*"
                       r"blocks\.1\.mlp\.fc2 \(.*--int8\.repair 300"):  # fmt: skip
        write_int8("openvino", outlier(3000), tmp_path / "net.xml", IMAGES[:8], FEW, strict)
    assert not list(tmp_path.iterdir())


def test_int8_needs_other_images_than_the_proof(openvino, classifier, images, tmp_path):
    one = tmp_path / "one"
    (one / "red").mkdir(parents=True)
    (one / "red" / "1.png").write_bytes((images / "red" / "000.png").read_bytes())
    data = DataOptions(root=str(one), num_workers=0)
    with pytest.raises(UserError, match="int8 needs images beside"):
        export(config_of(classifier, tmp_path, "openvino", precision="int8", data=data))


def test_images_are_mixed_and_those_that_check_train_nothing(tmp_path, monkeypatch):
    seen = {}

    def repaired(graph, batches, *asked):
        seen["trained"] = batches
        raise InterruptedError

    monkeypatch.setattr(rounding, "sensitivities", lambda of, own: seen.update(ranked=own) or {})
    monkeypatch.setattr(rounding, "repaired", repaired)
    monkeypatch.setattr(Trials, "candidate", lambda self, *_: seen.update(checks=[self.checks]))
    images = torch.arange(48).div(48).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)  # as sorted folders
    with pytest.raises(InterruptedError):
        write_int8("onnx", Graph(small("augreg")), tmp_path / "net.onnx", images,
                   Int8Options(repair=5), NEAR)  # fmt: skip
    shown = {key: [48 * each[:, 0, 0, 0] for each in own] for key, own in seen.items()}
    assert sorted(torch.cat(shown["checks"] + shown["trained"]).round().tolist()) == [*range(48)]
    assert all(each.std() > 5 for own in shown.values() for each in own if len(each) > 4)


def test_what_is_not_finite_can_be_written_down():
    found = Comparison()
    found.add("a", {"tokens": np.ones((1, 2))}, {"tokens": np.full((1, 2), np.nan)})
    assert mean_difference(found) == FAR


def test_words_and_counts():
    assert num_wanted(Int8Options()) == 128
    assert num_wanted(Int8Options(num_images=16, repair=10)) == 80
    assert num_wanted(Int8Options(num_images=16, repair=10_000)) == 512
    assert short("encoder.model.blocks.0") == "blocks.0"
    assert "head (0.5), blocks.0 (0.25)" in worst_layers(
        {"head": 0.5, "encoder.model.blocks.0": 0.25}
    )
