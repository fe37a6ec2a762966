"""Which layers stay higher is found in few attempts; every kind quantises."""

from dataclasses import replace

import pytest
import torch

from limbeck.exports.formats import FORMATS, has_packages, module_of
from limbeck.exports.gate import TOLERANCES, Comparison
from limbeck.exports.graph import Graph, as_program, layers_of
from limbeck.exports.int8 import fewest_kept
from limbeck.exports.rounding import folded, sensitivities
from tests.exports.kinds import KINDS, small


@pytest.mark.parametrize("wanted", [0, 1, 2, 7, 16])
def test_the_fewest_are_found_in_few_attempts(wanted):
    asked = []
    found = fewest_kept([*range(32)], lambda kept: asked.append(kept) or len(kept) >= wanted)
    assert found == tuple(range(wanted)) and len(asked) <= 6
    assert fewest_kept([*range(32)], lambda kept: len(kept) > 16) is None


def check(to, kind, folder):
    if not has_packages(to):
        pytest.skip("the extra export is not installed")
    encoder, module, suffix = small(kind), module_of(to), FORMATS[to].suffix
    graph = folded(Graph(encoder))
    draw = torch.Generator().manual_seed(5)
    drawn = torch.rand(24, 3, *graph.sizes[0], generator=draw).mul(255).round() / 255
    assert set(sensitivities(graph, [drawn[:2]])) <= set(layers_of(as_program(graph)))
    module.write(graph, folder / f"a{suffix}", "fp32")
    feeds = [graph.feed(each[None]) for each in drawn[:12]]
    said = module.quantise(folder / f"a{suffix}", folder / f"b{suffix}", feeds, ())
    found, images = Comparison(), drawn[12:]
    answers = module.load(folder / f"b{suffix}", said, 1)(graph.feed(images))
    found.add([str(place) for place in range(12)], Graph(encoder).answer(images), answers)
    # Of twelve images two may change their class: these networks are random, and near to ties.
    assert found.failures(replace(TOLERANCES["int8"], agreement=0.8)) == []
    assert all(max(each) > 1e-4 for each in found.relative.values())  # it is int8


@pytest.mark.parametrize("kind", ["augreg", "tiny-vit", "augreg+light"])
def test_onnx_in_int8(kind, tmp_path):
    check("onnx", kind, tmp_path)


def test_openvino_in_int8(tmp_path):
    check("openvino", "tiny-vit", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_every_kind_in_int8(to, kind, tmp_path):
    check(to, kind, tmp_path)
