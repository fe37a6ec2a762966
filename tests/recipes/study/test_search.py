"""Searches: whole ones, stopped ones, refused ones, and by the command line."""

import json
from dataclasses import replace

import pytest

from limbeck import cli
from limbeck.engine.loop import Interrupted
from limbeck.errors import UserError
from limbeck.evaluation import pareto
from limbeck.models.finished import load_student
from limbeck.models.options import StudentOptions
from limbeck.recipes.study import candidates
from limbeck.recipes.study.options import LimitOptions
from limbeck.recipes.study.search import check, read_limit, report, search
from tests.recipes.runs import snapshot
from tests.recipes.searches import SEED, search_config


@pytest.fixture(scope="module")
def found(images, teacher, tmp_path_factory):
    return search(search_config(images, tmp_path_factory.mktemp("search") / "out", teacher))


@pytest.fixture(autouse=True)
def one_picture(monkeypatch):
    """Drawing takes a second, and what ``found`` draws, before this, is looked at."""
    monkeypatch.setattr(pareto, "draw_pareto", lambda *_: [])


def test_the_winner_is_a_finished_student_within_the_limits(found):
    assert [each.name for each in found.outcome.candidates] == [
        "seed", "round1_baseline", "round1_depth",
    ]  # fmt: skip
    winner = found.outcome.winner
    assert winner.costs["macs"] <= found.outcome.limits["macs"]
    student = load_student(found.winner_dir)
    assert (student.facts.embed_dim, student.facts.depth) == (
        winner.shape.embed_dim, winner.shape.depth,
    )  # fmt: skip
    for name in ("table.md", "search.json", "pareto.png", "pareto.svg"):
        assert (found.out / name).stat().st_size > 100
    plain = json.loads((found.out / "search.json").read_text())
    assert [each["score"] for each in plain["candidates"]] == [
        each.score for each in found.outcome.candidates
    ]
    text = report(found)
    assert f"--student {winner.shape.text}" in text and "width alone" in text
    assert "linear probe" in text and "flatters it" in text


def test_a_finished_search_repeats_nothing(found, images, teacher, monkeypatch):
    monkeypatch.setattr(candidates, "distill", lambda config: pytest.fail("trained again"))
    before = snapshot(found.out / "round1_depth_0")
    again = search(search_config(images, found.out, teacher))
    assert report(again) == report(found)
    assert snapshot(found.out / "round1_depth_0") == before


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_search_that_was_killed_goes_on(stage, found, images, teacher, tmp_path, monkeypatch):
    real, calls = candidates.distill, []

    def distill(config):
        calls.append(config.out.name)
        if len(calls) == stage + 1:
            raise Interrupted("stopped", 2)
        return real(config)

    config = search_config(images, tmp_path / "out", teacher)
    monkeypatch.setattr(candidates, "distill", distill)
    with pytest.raises(Interrupted):
        search(config)
    before = snapshot(tmp_path / "out" / "seed_0") if stage else None
    again = search(config)
    assert len(calls) == 4 and len(set(calls)) == 3  # the one that was stopped, once more
    if stage:
        assert snapshot(tmp_path / "out" / "seed_0") == before
    scores = [each.scores for each in again.outcome.candidates]
    assert scores == [each.scores for each in found.outcome.candidates]
    assert again.outcome.winner.name == found.outcome.winner.name


def test_a_kill_between_training_and_its_record_trains_nothing_twice(
    found, images, teacher, tmp_path, monkeypatch
):
    config = search_config(images, tmp_path / "out", teacher)
    real = candidates.Candidates._timed
    monkeypatch.setattr(candidates.Candidates, "_timed", lambda *_: pytest.fail("not yet"))
    with pytest.raises(pytest.fail.Exception):
        search(config)  # before the seed
    monkeypatch.setattr(candidates.Candidates, "_timed", real)
    done = search(config)
    (tmp_path / "out" / "candidates.json").unlink()  # as if none had been written
    before = snapshot(tmp_path / "out" / "seed_0")
    assert report(search(config)).splitlines()[0] == report(done).splitlines()[0]
    assert snapshot(tmp_path / "out" / "seed_0") == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 2}, "rounds is 1 there and 2 here"),
        ({"seeds": 2}, "seeds is 1 there and 2 here"),
        ({"limits": LimitOptions(macs="60%")}, 'limits.macs is "70%" there'),
        ({"inherit": True}, "inherit is false there"),
    ],
)
def test_another_search_in_the_folder_is_refused(found, images, teacher, changes, message):
    with pytest.raises(UserError, match=f"holds another run: .*{message}"):
        search(search_config(images, found.out, teacher, **changes))


def test_candidates_inherit_and_several_seeds_count(images, teacher, tmp_path):
    config = search_config(
        images, tmp_path / "out", teacher, inherit=True, seeds=2, factors=("depth",)
    )
    found = search(config)
    assert [len(each.scores) for each in found.outcome.candidates] == [2, 2, 2]
    record = json.loads(
        (tmp_path / "out" / "starts" / "round1_depth_1" / "student.json").read_text()
    )
    assert record["cut_from"] == "seed" and record["fresh"] == ["pos_embed"]
    run = json.loads((tmp_path / "out" / "round1_depth_1" / "config.json").read_text())
    assert run["student"]["weights"].endswith("starts/round1_depth_1") and run["seed"] == 1


def test_unlabelled_images_are_scored_against_the_teacher(unlabelled, teacher, tmp_path):
    found = search(search_config(unlabelled, tmp_path / "out", teacher, factors=("depth",)))
    assert found.score_name == "neighbours"
    assert "teacher's neighbours %" in report(found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limits": LimitOptions()}, "A search needs a limit"),
        ({"limits": LimitOptions(params="5Q")}, "--limits.params 5Q: write it as 5, 5K, 5M, 5G"),
        ({"limits": LimitOptions(latency="5M")}, "--limits.latency 5M: write it as 5ms"),
        ({"limits": LimitOptions(macs="100%")}, "no smaller than the seed"),
        ({"student": StudentOptions(weights="timm:vit_tiny")}, "name the seed's shape"),
        ({"student": StudentOptions(name="vit_tyni:depth=2")}, "Did you mean 'vit_tiny'"),
    ],
)
def test_what_can_be_refused_without_torch(images, teacher, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        check(search_config(images, tmp_path, teacher, **changes))


def test_limits_are_read():
    assert read_limit("5.4M", "params") == (5.4e6, False)
    assert read_limit("8ms", "latency") == (8.0, False)
    assert read_limit("50%", "macs") == (0.5, True)


def test_what_no_candidate_meets_is_told_before_anything_trains(images, teacher, tmp_path):
    config = search_config(images, tmp_path / "out", teacher, limits=LimitOptions(params="100"))
    with pytest.raises(UserError, match="limit of 100 on params: the nearest shape, vit_tiny"):
        search(config)
    assert not (tmp_path / "out" / "seed_0").exists()
    with pytest.raises(UserError, match="no factor of vit_tiny 'dept'. Did you mean 'depth'"):
        search(replace(config, factors=("dept",)))


def test_the_command_line(images, teacher, tmp_path, capsys):
    cli.main(
        ["search", "--student", SEED, "--teacher", str(teacher), "--data", str(images)]
        + ["--data.holdout-ratio", "0.25", "--data.num-workers", "0", "--out", str(tmp_path / "s")]
        + ["--rounds", "1", "--factors", "depth", "--limits.params", "80%"]
        + [
            "--latency.runtime",
            "torch",
            "--latency.num-turns",
            "1",
            "--train.epochs",
            "1",
            "--train.global-batch-size",
            "16",
        ]
        + ["--train.precision", "fp32", "--train.device", "cpu", "--method", "relation"]
        + ["--relation.drop-path-rate", "0"]
    )
    out = capsys.readouterr().out
    assert "Winner: vit_tiny:img_size=32" in out and "limbeck distill --student vit_tiny:" in out
    assert (tmp_path / "s" / "winner" / "student.json").exists()
