"""One candidate: written down at once, not trained again, its start cut from its parent."""

import json
from dataclasses import replace

import pytest

from limbeck.engine.loop import Interrupted
from limbeck.errors import NotFiniteError
from limbeck.models.finished import load_student
from limbeck.models.options import StudentOptions
from limbeck.models.whole_shape import whole_shape
from limbeck.recipes.study import candidates as made
from limbeck.recipes.study.candidates import Candidates
from limbeck.recipes.study.engine import in_turn
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
    candidates.train_and_score([seed], None)
    record = json.loads((tmp_path / "candidates.json").read_text())[SEED_NAME]
    assert record["scores"] == {"0": 0.5} and record["score"] == 0.5
    assert record["shape"] == SEED and record["seconds"] == seed.seconds > 0
    assert set(record["costs"]) == {"params", "macs", "latency_ms"}

    child = Candidate("a", StudentOptions(name=SEED.replace("depth=2", "depth=1")), 1, "depth")
    candidates.train_and_score([child], seed)
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
        candidates.train_and_score([seed], None)
        assert "step 3" in seed.failure and not seed.scores and seed.seconds > 0
    assert len(calls) == 1
    assert "step 3" in json.loads((tmp_path / "candidates.json").read_text())["seed"]["failure"]


def test_all_candidates_of_a_round_are_handed_over_at_once(candidates, tmp_path, monkeypatch):
    monkeypatch.setattr(made, "distill", lambda config: None)
    handed = []

    def runner(chains):
        handed.append(list(chains))  # as one would that runs them side by side
        in_turn(handed[-1])

    candidates.engine = replace(candidates.engine, runner=runner)
    candidates.config = replace(candidates.config, seeds=2)
    both = [Candidate(name, StudentOptions(name=SEED), 0, SEED_NAME) for name in "ab"]
    candidates.train_and_score(both, None)
    assert [len(chains) for chains in handed] == [4]
    assert [each.scores for each in both] == [[0.5, 0.5], [0.5, 0.5]]
    records = json.loads((tmp_path / "candidates.json").read_text())
    assert [each["scores"] for each in records.values()] == [{"0": 0.5, "1": 0.5}] * 2


def test_the_time_before_a_stop_counts(candidates, tmp_path, monkeypatch):
    def distill(config):
        raise Interrupted("Stopped by Ctrl-C.", 2)

    monkeypatch.setattr(made, "distill", distill)
    seed = Candidate(SEED_NAME, StudentOptions(name=SEED), 0, SEED_NAME)
    with pytest.raises(Interrupted):
        candidates.train_and_score([seed], None)
    record = json.loads((tmp_path / "candidates.json").read_text())["seed"]
    assert record["seconds"] > 0 and record["failure"] is None and not record["scores"]
