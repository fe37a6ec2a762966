"""``evaluate``: rows, verdict and files; with labels, without, and what is refused."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from limbeck.data.options import DataOptions
from limbeck.errors import RunError, UserError
from limbeck.evaluation.scores import score_of
from limbeck.models.origins import load
from limbeck.recipes.look.evaluate import (
    check,
    evaluate,
    held_out_alike,
    joined,
    report,
    table_of,
)
from limbeck.recipes.look.options import EvaluateConfig
from limbeck.recipes.run.options import EmbedOptions
from limbeck.recipes.train.distill import distill
from limbeck.recipes.train.finetune import finetune
from tests.recipes.runs import distill_config, draw_classes, finetune_config, snapshot

PROBES = ["knn_top1", "linear_top1", "few_1_top1", "few_5_top1"]


def config_of(root, *students, **changes):
    values = {
        "student": tuple(map(str, students)),
        "data": DataOptions(root=str(root), holdout_ratio=0.25, num_workers=0),
        "embed": EmbedOptions(crop_ratio=1.0),
        "num_labels": (1, 5),
        "label_draws": 2,
        "measure_speed": False,
        "device": "cpu",
    }
    return EvaluateConfig(**values | changes)


@pytest.fixture(scope="session")
def evaluated(images, student, teacher, tmp_path_factory):
    """An evaluation with everything, and its folder."""
    out = tmp_path_factory.mktemp("evaluated") / "out"
    config = config_of(images, student, teacher=str(teacher), out=out, measure_speed=True)
    return evaluate(config), out


def test_runs_of_which_one_has_a_classifier_share_the_other_scores():
    right = torch.tensor([True, False, True])
    both, bare = {"top1": score_of(right, "a"), "knn_top1": score_of(right, "b")}, {}
    bare["knn_top1"] = score_of(~right, "b")
    found = joined([both, bare])
    assert list(found) == ["knn_top1"] and found["knn_top1"].mean == 0.5
    assert list(joined([bare, both])) == ["knn_top1"]


def test_rows_scores_and_costs(evaluated):
    found, _ = evaluated
    assert [row.role for row in found.rows] == ["student", "baseline", "teacher"]
    student, baseline, teacher = found.rows
    for row in found.rows:
        assert list(row.scores) == PROBES
        assert all(0 <= score.low <= score.mean <= score.high <= 1 for score in row.scores.values())
        assert row.cost["images_per_second"] > 0
    assert student.cost["parameters"] == baseline.cost["parameters"] < teacher.cost["parameters"]
    assert student.cost["macs"] == baseline.cost["macs"] < teacher.cost["macs"]
    assert student.scores["linear_top1"].mean > 0.8  # colours; chance is a third


def test_what_is_told_beside_the_scores(evaluated):
    found, out = evaluated
    for row in found.rows:
        assert 1 <= row.features["rank"] <= 12 and row.features["uniformity"] < 0
        assert row.by_class.how == "linear probe"
        assert int(row.by_class.confusion.sum()) == row.scores["linear_top1"].num_test
        right = row.by_class.confusion.diagonal().sum() / row.by_class.confusion.sum()
        assert float(right) == pytest.approx(row.scores["linear_top1"].mean)
        assert 0 <= row.by_class.calibration <= 1
    said = report(found)
    assert f"  {found.paired}" in said and "(McNemar)" in found.paired
    assert "Classes, linear probe:" in said and "| calibration error % |" in said
    plain = json.loads((out / "scores.json").read_text())
    assert plain["rows"][0]["by_class"]["classes"][0]["class"] == "blue"
    assert (out / "confusion.png").exists()


def test_the_verdict(evaluated):
    found, _ = evaluated
    assert found.deciding == "linear_top1"
    assert set(found.verdicts) == set(PROBES)
    said = report(found)
    assert f"Verdict (linear_top1): {found.verdicts['linear_top1'].why}" in said
    assert "istillation helped" not in said and "istillation did not help" not in said
    assert "Note: The baseline is the student's architecture, untrained, which says noth" in said
    for role in ("student", "baseline", "teacher"):
        assert f"| {role} " in table_of(found)


def test_the_files(evaluated):
    found, out = evaluated
    plain = json.loads((out / "scores.json").read_text())
    assert plain["config"]["out"] == str(out)
    assert plain == json.loads(json.dumps({"config": plain["config"], **found.plain()}))
    assert [row["role"] for row in plain["rows"]] == ["student", "baseline", "teacher"]
    assert (out / "table.md").read_text() == report(found) + "\n"
    pytest.importorskip("matplotlib")
    assert (out / "probes.png").read_bytes().startswith(b"\x89PNG")
    assert b"</svg>" in (out / "probes.svg").read_bytes()


def test_evaluation_changes_no_run(images, student, teacher):
    before = snapshot(student) | snapshot(teacher)
    evaluate(config_of(images, student, teacher=str(teacher)))
    assert snapshot(student) | snapshot(teacher) == before


def test_several_runs_of_a_recipe(images, student, teacher, tmp_path):
    other = distill(distill_config(images, tmp_path / "other", teacher, seed=1))
    found = evaluate(
        config_of(images, student, other, baseline=(str(teacher), str(student)), num_labels=())
    )
    assert [len(row.runs) for row in found.rows] == [2, 2]
    assert found.rows[0].scores["linear_top1"].runs == tuple(
        run["linear_top1"].mean for run in found.rows[0].runs
    )
    assert "| student (2 runs) " in table_of(found)
    assert "over 2 and 2 training runs" in found.verdicts["linear_top1"].why
    assert found.notes == []


def test_the_same_network_does_not_help_itself(images, student):
    found = evaluate(config_of(images, student, baseline=(str(student),), num_labels=()))
    assert all(verdict.difference == 0 for verdict in found.verdicts.values())
    assert found.verdicts["linear_top1"].kind != "helped"


def test_unlabelled_images_are_compared_with_the_teacher(unlabelled, student, teacher):
    found = evaluate(config_of(unlabelled, student, teacher=str(teacher)))
    assert [row.role for row in found.rows] == ["student", "baseline"]
    assert found.deciding == "neighbours"
    assert all(set(row.scores) == {"neighbours"} for row in found.rows)
    assert all(row.by_class is None and row.features["rank"] > 1 for row in found.rows)
    assert "(paired bootstrap)" in found.paired
    assert "Verdict (neighbours)" in report(found)


def test_unlabelled_images_without_a_teacher(unlabelled, student):
    with pytest.raises(UserError, match="has no labels, so .* pass --teacher, or class sub-fold"):
        evaluate(config_of(unlabelled, student))


def test_a_classifier_is_asked_itself(images, student, tmp_path):
    run = finetune(finetune_config(images, tmp_path / "run", student))
    found = evaluate(config_of(images, run, num_labels=()))
    assert "top1" in found.rows[0].scores
    assert "top1" not in found.rows[1].scores  # an untrained classifier would only guess
    assert found.deciding == "linear_top1"
    both = evaluate(config_of(images, run, baseline=(str(run),), num_labels=()))
    assert both.deciding == "top1"


def test_a_classifier_of_other_names_decides_nothing(images, classifier, tmp_path):
    other = shutil.copytree(images, tmp_path / "other")
    for name, new in (("blue", "zebra"), ("green", "apple"), ("red", "mango")):
        (other / name).rename(other / new)
    both = evaluate(config_of(other, classifier, baseline=(str(classifier),), num_labels=()))
    assert both.deciding == "linear_top1" and "top1" not in both.rows[0].scores
    assert any("(blue, green, red): it is not asked" in note for note in both.notes)


def test_seen_test_images_are_said(unlabelled, images, student, teacher):
    more = DataOptions(root=str(images), holdout_ratio=0.5, num_workers=0)
    found = evaluate(config_of(images, student, data=more, num_labels=()))
    assert any("Some test images were among those the student" in note for note in found.notes)


@pytest.mark.parametrize(
    ("ratios", "changes", "expected"),
    [
        ((0.05,), {}, 0.05),
        ((0.1, 0.05), {}, 0.05),  # which lies within the other
        ((0.0,), {}, 0.2),  # nothing to score on
        ((0.5,), {}, 0.2),  # which lies within
        ((0.05,), {"holdout_ratio": 0.3}, 0.3),  # asked for
        ((0.05,), {"max_holdout": 7}, 0.2),
        ((0.05,), {"eval_root": "elsewhere"}, 0.2),
        ((0.05,), {"root": "elsewhere"}, 0.2),
    ],
)
def test_whose_held_out_images_are_the_test(images, student, tmp_path, ratios, changes, expected):
    runs = []
    for ratio in ratios:
        runs.append(shutil.copytree(student, tmp_path / str(ratio)))
        record = json.loads((runs[-1] / "student.json").read_text())
        record["config"]["data"] |= {"root": f"{images}/../{images.name}", "holdout_ratio": ratio}
        (runs[-1] / "student.json").write_text(json.dumps(record))
    data = replace(EvaluateConfig().data, **{"root": str(images)} | changes)
    found = held_out_alike(config_of(images, *runs, data=data))
    assert found.holdout_ratio == expected
    assert replace(found, holdout_ratio=data.holdout_ratio, max_holdout=data.max_holdout) == data


def test_a_student_is_not_asked_about_images_that_it_was_distilled_on(images, teacher, tmp_path):
    data = DataOptions(root=str(images), holdout_ratio=0.1, num_workers=0)
    run = distill(replace(distill_config(images, tmp_path / "run", teacher), data=data))
    usual = EvaluateConfig().data
    config = config_of(images, run, data=replace(usual, root=str(images), num_workers=0))
    found = evaluate(replace(config, num_labels=(), out=tmp_path / "out"))
    assert not any("were among those the student" in note for note in found.notes)
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["config"]["data"][
        "holdout_ratio"
    ] == 0.1  # fmt: skip
    assert max(map(len, report(found).split("\n\n")[0].splitlines())) <= 80


def test_another_crop_than_the_student_s_own_is_said(images, student):
    found = evaluate(config_of(images, student, embed=EmbedOptions(), num_labels=()))
    assert any(f"{student} records 1: pass --embed.crop-ratio 1 " in note for note in found.notes)


def test_named_test_images(images, student, tmp_path):
    test = draw_classes(tmp_path / "test", num_per_class=2)
    data = DataOptions(root=str(images), eval_root=str(test), num_workers=0)
    found = evaluate(config_of(images, student, data=data, num_labels=()))
    assert found.rows[0].scores["linear_top1"].num_test == 6


def test_bad_test_images_are_said(images, student, tmp_path):
    copy = shutil.copytree(images, tmp_path / "copy")
    (copy / "red" / "000.png").write_bytes(b"no image")
    data = DataOptions(root=str(copy), holdout_ratio=0.25, max_bad_ratio=0.1, num_workers=0)
    found = evaluate(config_of(copy, student, data=data, num_labels=()))
    assert any("1 images could not be used and were skipped" in note for note in found.notes)


def test_nothing_held_out(images, student):
    data = DataOptions(root=str(images), holdout_ratio=0.0, num_workers=0)
    with pytest.raises(UserError, match="is held out to score on"):
        evaluate(config_of(images, student, data=data))


@pytest.fixture
def _no_work(monkeypatch):
    def load_encoder(source):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(load, "load_encoder", load_encoder)


@pytest.mark.usefixtures("_no_work")
def test_a_folder_that_can_t_be_written_is_said_before_the_work(images, student, tmp_path):
    (tmp_path / "file").touch()
    config = config_of(images, student, out=tmp_path / "file" / "out", num_labels=())
    with pytest.raises(UserError, match="Can't write in .* choose another --out"):
        evaluate(config)


def test_overwrite_replaces_the_scores_of_another_evaluation(images, student, tmp_path):
    for k in (3, 4):
        config = config_of(images, student, out=tmp_path, num_labels=(), k=k, overwrite=k == 4)
        evaluate(config)
    assert json.loads((tmp_path / "scores.json").read_text())["config"]["k"] == 4


@pytest.mark.usefixtures("_no_work")
def test_the_scores_of_another_evaluation_are_kept(images, student, evaluated):
    out = evaluated[1]
    before = snapshot(out)
    with pytest.raises(UserError, match="holds the scores of another evaluation; choose another"):
        evaluate(config_of(images, student, out=out))
    assert snapshot(out) == before


def test_the_same_evaluation_may_be_repeated(images, student, tmp_path):
    config = config_of(images, student, num_labels=(), out=tmp_path / "out")
    evaluate(config)
    (config.out / "table.md").unlink()
    evaluate(config)
    assert (config.out / "table.md").exists()


def test_a_disk_that_fills_up_loses_no_table(images, student, tmp_path, caplog):
    config = config_of(images, student, num_labels=(), out=tmp_path / "out")
    (config.out / "table.md").mkdir(parents=True)
    with (
        pytest.raises(RunError, match="Can't write .*table.md"),
        caplog.at_level("INFO", "limbeck"),
    ):
        evaluate(config)
    assert "| student " in caplog.text


def test_an_own_network_needs_a_baseline(images):
    own = "tests.fakes:FakeEncoder"
    with pytest.raises(UserError, match="The student fake can't be built untrained .* --baseline"):
        evaluate(config_of(images, own))
    found = evaluate(config_of(images, own, baseline=(own,), num_labels=()))
    assert found.verdicts["linear_top1"].difference == 0


def test_top5_stands_last(images, student, tmp_path):
    for index in range(6):
        shutil.copytree(images / "red", tmp_path / str(index))
    found = evaluate(config_of(tmp_path, student, num_labels=(1,)))
    heads = [text.splitlines()[0] for text in table_of(found).split("\n\n")]
    columns = [each.strip() for head in heads for each in head.split("|")[2:-1]][2:]
    few = ["knn_top1", "linear_top1", "few_1_top1", "calibration error %"]
    assert columns == [*few, "knn_top5", "linear_top5"]


def test_bad_test_images_count_among_all(images, student, tmp_path):
    """One of 48 is less than a fortieth; of 36 to learn from it would be more."""
    copy = shutil.copytree(images, tmp_path / "copy")
    (copy / "red" / "000.png").write_bytes(b"no image")
    data = DataOptions(root=str(copy), holdout_ratio=0.25, max_bad_ratio=1 / 40, num_workers=0)
    found = evaluate(config_of(copy, student, data=data, num_labels=()))
    assert any("1 images could not be used" in note for note in found.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": ()}, "No student is named"),
        ({"student": ("timm:vit_tny_patch16_224",)}, "Did you mean 'vit_tiny_patch16_224'?"),
        ({"baseline": ("no/such",)}, "no/such"),
        ({"teacher": "hff:a/b"}, "there is no scheme 'hff:'. Did you mean 'hf'?"),
        ({"device": "cuba"}, "There is no device 'cuba'. Did you mean 'cuda'?"),
        ({"data": DataOptions()}, "No images are named"),
    ],
)
def test_what_check_refuses(images, student, changes, message):
    with pytest.raises(UserError) as caught:
        check(replace(config_of(images, student), **changes))
    assert message in str(caught.value)


def test_several_processes_are_refused(images, student, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="evaluate is one process.*without torchrun"):
        check(config_of(images, student))
