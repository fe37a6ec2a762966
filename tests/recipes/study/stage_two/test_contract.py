"""What networks have answered is kept, and asked for again where anything is another."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.origins.load import load_encoder
from limbeck.recipes.study.stage_two.contract import Bench, recall


def test_an_answer_is_kept_and_what_is_none_is_told(classifier, tmp_path):
    config, images = SimpleNamespace(measure_speed=False), SimpleNamespace(fingerprint="these")
    bench = Bench(config, images, torch.device("cpu"), None)
    network, file, asked = load_encoder(classifier), tmp_path / "found.json", []

    def ask(bench=bench, **more):
        def answer():
            asked.append(more)
            return {"hits": "01"}

        return recall(file, bench, network, "", more, answer, dict[str, str], 8)

    scores, cost = ask(crop=1)
    assert (scores, cost.keys()) == ({"hits": "01"}, {"parameters", "macs"})
    assert ask(crop=1) == (scores, cost) and len(asked) == 1
    ask(crop=2)
    ask(replace(bench, images=SimpleNamespace(fingerprint="others")), crop=2)
    assert len(asked) == 3
    known = json.loads(file.read_text())
    file.write_text(json.dumps(known | {"scores": {"hits": 1}}))
    with pytest.raises(UserError, match="found.json"):
        ask(replace(bench, images=SimpleNamespace(fingerprint="others")), crop=2)
