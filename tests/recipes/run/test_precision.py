"""``precision auto``: decided once, told, saved and kept by a run; one for a whole study."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from limbeck.data.options import StoreOptions
from limbeck.engine import machine
from limbeck.engine.distributed import Ranks, ranks_session
from limbeck.engine.options import TrainOptions
from limbeck.errors import UserError
from limbeck.models.options import TeacherOptions
from limbeck.recipes.look.analyze import analyze
from limbeck.recipes.look.options import AnalyzeConfig
from limbeck.recipes.run import precision
from limbeck.recipes.run.options import DistillConfig, FinetuneConfig
from limbeck.recipes.run.precision import filled, settle, settled_plain, stands_for
from limbeck.recipes.study.compare import compare
from limbeck.recipes.study.options import TwoStageConfig
from limbeck.recipes.study.search import search
from limbeck.recipes.study.two_stage import two_stage
from limbeck.recipes.targets.checking import Checked
from limbeck.recipes.targets.store_targets import StoreTargetsConfig, store_targets
from limbeck.recipes.train.distill import distill
from limbeck.recipes.train.finetune import finetune
from tests.processes import start_ranks
from tests.recipes.runs import distill_config, finetune_config, teacher_config
from tests.recipes.searches import search_config
from tests.recipes.study.test_compare import config_of as compare_config
from tests.recipes.study.test_two_stage import config_of as two_stage_config

RANKS = Ranks()


@pytest.fixture
def has_bf16(monkeypatch):
    """A machine on which ``auto`` is bf16; another one with False."""
    precision._warn.cache_clear()

    def set_it(value: bool = True) -> None:
        seconds = (2.0, 1.0) if value else (1.0, 73.0)
        monkeypatch.setattr(machine, "product_seconds", lambda dtype: seconds)

    set_it()
    return set_it


def auto(config):
    """The config as it is for who states no precision."""
    changes = {"train": replace(config.train, precision="auto")}
    if config.teacher.source is not None:
        changes["teacher"] = replace(config.teacher, precision="auto")
    return replace(config, **changes)


def saved(run: Path) -> dict[str, str | None]:
    """What a run's folder says of its precisions."""
    config = json.loads((run / "config.json").read_text())
    return {name: config[name].get("precision") for name in ("train", "teacher") if name in config}


def test_it_is_told_in_one_line_and_fills_what_is_left_open(has_bf16, caplog):
    config = FinetuneConfig(
        teacher=TeacherOptions(source="x"), train=TrainOptions(precision="fp32")
    )
    with caplog.at_level(logging.INFO, "limbeck"):
        found = settle(config, RANKS)
    assert (found.train.precision, found.teacher.precision) == ("fp32", "bf16")
    (line,) = caplog.messages
    assert line.startswith("precision: bf16, because its products are 2.0 times faster than fp32's")
    assert "; 1 thread, " in line and line.endswith(("loader process", "loader processes"))
    assert stands_for(config, found) == "bf16"


def test_what_is_stated_is_obeyed_and_warned_of_once_where_it_is_slow(has_bf16, caplog):
    stated = DistillConfig(train=TrainOptions(precision="bf16"))
    assert settle(stated, RANKS) == stated and stands_for(stated, stated) is None
    assert not caplog.messages
    has_bf16(False)
    settle(stated, RANKS)
    settle(stated, RANKS)
    (line,) = caplog.messages
    assert line.startswith("bf16 (train.precision) is slow here: bf16 products are 73 times slower")


def test_a_teacher_that_there_is_not_has_none():
    config = DistillConfig()
    found = settle(config, RANKS)
    assert found.teacher == TeacherOptions() and found.train.precision == "fp32"
    assert "precision" not in settled_plain(found)["teacher"]
    of_classifier = settle(TwoStageConfig(task_teacher="x"), RANKS)
    assert of_classifier.teacher.precision == "fp32"
    assert of_classifier.specific.train.precision == "fp32"
    assert of_classifier.tune_teacher.train.precision == "fp32"


def test_a_run_saves_it_and_keeps_it_on_a_slow_machine(images, teacher, tmp_path, has_bf16, caplog):
    config = auto(distill_config(images, tmp_path / "run", teacher))
    run = distill(config)
    assert saved(run) == {"train": "bf16", "teacher": "bf16"}
    record = json.loads((run / "student.json").read_text())["config"]
    assert (record["train"]["precision"], record["teacher"]["precision"]) == ("bf16", "bf16")
    has_bf16(False)
    with caplog.at_level(logging.INFO, "limbeck"):
        assert distill(config) == run
    assert "precision: bf16, in which what is there was begun" in caplog.text
    assert "bf16 (train.precision, teacher.precision) is slow here" in caplog.text
    assert "is finished already" in caplog.text
    # Another run in its place is decided anew, whatever it replaces.
    distill(replace(config, seed=1, overwrite=True))
    assert saved(run) == {"train": "fp32", "teacher": "fp32"}
    with pytest.raises(UserError, match='train.precision is "fp32" there and "bf16" here'):
        distill(replace(config, seed=1, train=replace(config.train, precision="bf16")))


def test_it_goes_on_with_a_run_that_had_no_auto(images, tmp_path, has_bf16):
    """Earlier versions wrote a precision of a teacher, too, where there is none."""
    config = auto(teacher_config(images, tmp_path / "run"))
    run = distill(replace(config, train=replace(config.train, precision="bf16")))
    assert saved(run) == {"train": "bf16", "teacher": None}
    file = run / "config.json"
    old = json.loads(file.read_text())
    old["teacher"]["precision"] = "bf16"
    file.write_text(json.dumps(old))
    has_bf16(False)
    before = (run / "student.safetensors").stat().st_mtime_ns
    assert distill(config) == run
    assert (run / "student.safetensors").stat().st_mtime_ns == before


def test_a_fine_tuning_and_a_chain(images, teacher, student, tmp_path, has_bf16):
    tuned = finetune(auto(finetune_config(images, tmp_path / "tuned", student)))
    assert saved(tuned)["train"] == "bf16"
    chain = auto(
        distill_config(
            images, tmp_path / "chain", teacher,
            student=DistillConfig().student,
            chain="vit_tiny:img_size=32:patch_size=8:embed_dim=24:depth=2:num_heads=4, "
            "vit_tiny:img_size=32:patch_size=8:embed_dim=16:depth=2:num_heads=4",
        )
    )  # fmt: skip
    run = distill(chain)
    has_bf16(False)
    (run / "finished.json").unlink()
    assert distill(replace(chain, chain=chain.chain.replace(" ", ""))) == run
    folders = [run, *(each for each in run.iterdir() if each.is_dir() and each.name[0] in "12")]
    assert [saved(each) for each in folders] == [{"train": "bf16", "teacher": "bf16"}] * 3


def test_all_arms_of_a_comparison_have_one(images, teacher, tmp_path, has_bf16):
    config = compare_config(
        images, tmp_path / "out", "relation", teacher=TeacherOptions(source=str(teacher))
    )
    config = replace(
        auto(config), tune=replace(config.tune, train=replace(config.tune.train, precision="auto"))
    )
    compare(config)
    has_bf16(False)  # more arms are added on another machine
    more = ("relation", "masked-pixel", "again=relation,teacher.precision=auto")
    assert not compare(replace(config, arms=more)).failures
    runs = {each.parent.name: saved(each.parent) for each in config.out.glob("*/config.json")}
    assert len(runs) == 6 and {each["train"] for each in runs.values()} == {"bf16"}
    assert runs["again_0"]["teacher"] == "bf16" and runs["masked-pixel_0"]["teacher"] is None


def test_two_stages_have_one(images, teacher, tmp_path, has_bf16):
    config = two_stage_config(images, teacher, tmp_path / "out", "both")
    config = replace(
        config,
        teacher=replace(config.teacher, precision="auto"),
        train=replace(config.train, precision="auto"),
        specific=replace(config.specific, train=replace(config.specific.train, precision="auto")),
        tune_teacher=replace(
            config.tune_teacher, train=replace(config.tune_teacher.train, precision="auto")
        ),
    )
    two_stage(config)
    has_bf16(False)
    two_stage(replace(config, seeds=2))
    runs = [config.out / "teacher", *sorted(config.out.glob("seed_*/*"))]
    assert len(runs) == 5
    assert {saved(run)["train"] for run in runs} == {"bf16"}
    assert json.loads((config.out / "config.json").read_text())["precision"] == "bf16"


def test_a_two_stage_of_an_earlier_version_was_in_bf16(tmp_path, has_bf16):
    has_bf16(False)
    config = TwoStageConfig(out=tmp_path)
    assert settle(config, RANKS).train.precision == "fp32"
    (tmp_path / "config.json").write_text(json.dumps({"verb": "two-stage"}))
    assert settle(config, RANKS).train.precision == "bf16"


@pytest.mark.parametrize("value", ["auto", "int4", 16, None, ["bf16"]])
def test_a_saved_word_that_is_none_is_decided_anew(tmp_path, value):
    """Whose run that is, and that it is damaged, is told where it is taken up."""
    (tmp_path / "config.json").write_text(json.dumps({"train": {"precision": value}}))
    assert settle(DistillConfig(out=tmp_path), RANKS).train.precision == "fp32"


def test_a_search_has_one(images, teacher, tmp_path, has_bf16):
    config = auto(search_config(images, tmp_path / "out", teacher))
    search(config)
    runs = [each.parent for each in (tmp_path / "out").glob("*/config.json")]
    assert len(runs) > 1 and saved(config.out)["train"] == "bf16"
    assert {saved(run)["train"] for run in runs} == {"bf16"}


def test_a_store_keeps_the_precision_of_its_teacher(images, teacher, tmp_path, has_bf16):
    config = distill_config(images, tmp_path / "run", teacher)
    asked = StoreTargetsConfig(
        out=str(tmp_path / "store"),
        method="relation",
        student=config.student,
        teacher=replace(config.teacher, precision="auto"),
        relation=config.relation,
        data=config.data,
        store=StoreOptions(token_dtype="int8"),
        device="cpu",
    )
    store_targets(asked)
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert manifest["teacher"]["precision"] == "bf16"
    has_bf16(False)
    assert store_targets(asked).num_new == 0
    checked = store_targets(replace(asked, check=True, num_checked=4))
    assert isinstance(checked, Checked) and not checked.problems


def test_the_fine_tunings_of_an_analysis_have_one(images, student, tmp_path, has_bf16):
    quick = ("train.epochs=1", "train.global_batch_size=16")
    config = AnalyzeConfig(
        runs=(str(student),), out=tmp_path / "analysis", parts=(), keep_blocks=(1,),
        finetune_options=quick, device="cpu",
        data=distill_config(images, tmp_path, student).data,
    )  # fmt: skip
    assert analyze(config).found["precision"] == "bf16"
    has_bf16(False)
    analyze(replace(config, keep_blocks=(1, 2)))
    runs = sorted((config.out / "layers").iterdir())
    assert [saved(run)["train"] for run in runs] == ["bf16", "bf16"]


def test_filling_leaves_what_is_stated():
    config = FinetuneConfig(train=TrainOptions(precision="fp16"))
    assert filled(config, "bf16") == config
    assert filled(FinetuneConfig(), "bf16").train.precision == "bf16"


def _settled_on_a_rank(folder: Path) -> None:
    with ranks_session("cpu") as ranks:
        seconds = (2.0, 1.0) if ranks.is_main else (1.0, 2.0)
        machine.product_seconds = lambda dtype: seconds
        found = settle(DistillConfig(out=folder / "run"), ranks)
        (folder / f"{ranks.rank}.txt").write_text(found.train.precision)


def test_ranks_whose_machines_differ_agree(tmp_path):
    for each in start_ranks(_settled_on_a_rank, tmp_path, folder=tmp_path, count=2):
        assert each.end().returncode == 0
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["fp32", "fp32"]
