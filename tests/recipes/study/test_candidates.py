"""One candidate: written down at once, not trained again, its start cut from its parent."""

import json

import pytest

from limbeck.errors import NotFiniteError
from limbeck.models.finished import load_student
from limbeck.models.options import StudentOptions
from limbeck.models.whole_shape import whole_shape
from limbeck.recipes.study import candidates as made
from limbeck.recipes.study.candidates import Candidates
from limbeck.recipes.study.meter import Meter
from limbeck.recipes.study.rounds import SEED as SEED_NAME
from limbeck.recipes.study.rounds import Candidate
from tests.recipes.searches import SEED, search_config


@pytest.fixture
def candidates(images, teacher, tmp_path):
    config = search_config(images, tmp_path, teacher, inherit=True)
    meter = Meter(tmp_path / "costs.json", whole_shape(config.student), config.latency)
    return Candidates(config, meter, lambda folder: 0.5)


def test_a_candidate_and_its_child(candidates, tmp_path):
    seed = Candidate(SEED_NAME, StudentOptions(name=SEED), 0, SEED_NAME)
    candidates.train_and_score(seed, None)
    record = json.loads((tmp_path / "candidates.json").read_text())[SEED_NAME]
    assert record["scores"] == {"0": 0.5} and record["score"] == 0.5
    assert record["shape"] == SEED and record["seconds"] == seed.seconds > 0
    assert set(record["costs"]) == {"params", "macs", "latency_ms"}

    child = Candidate("a", StudentOptions(name=SEED.replace("depth=2", "depth=1")), 1, "depth")
    candidates.train_and_score(child, seed)
    parent, start, trained = (load_student(tmp_path / f) for f in ("seed_0", "starts/a_0", "a_0"))
    of_parent, of_start, of_trained = (
        each.model.blocks[0].attn.qkv.weight for each in (parent, start, trained)
    )
    assert trained.facts.depth == 1
    assert of_start.equal(of_parent) and not of_trained.equal(of_start)


def test_a_training_that_breaks_off_is_written_down_and_not_repeated(
    candidates, tmp_path, monkeypatch
):
    calls = []

    def distill(config):
        calls.append(config)
        raise NotFiniteError("The loss is not finite in step 3.")

    monkeypatch.setattr(made, "distill", distill)
    for _ in range(2):
        seed = Candidate(SEED_NAME, StudentOptions(name=SEED), 0, SEED_NAME)
        candidates.train_and_score(seed, None)
        assert "step 3" in seed.failure and not seed.scores
    assert len(calls) == 1
    assert "step 3" in json.loads((tmp_path / "candidates.json").read_text())["seed"]["failure"]
