"""Comparisons of small arms: a whole one, stopped ones, failing ones, refused ones."""

import json
from dataclasses import replace

import pytest

import limbeck
from limbeck import cli
from limbeck.data.options import DataOptions, MixOptions
from limbeck.engine.loop import Interrupted
from limbeck.engine.options import OptimOptions, TrainOptions
from limbeck.errors import UserError
from limbeck.methods.masked_pixel import MaskedPixel
from limbeck.models.options import TeacherOptions
from limbeck.recipes.run.options import EmbedOptions
from limbeck.recipes.study.arms import read_arms, tuning_config
from limbeck.recipes.study.compare import compare, report
from limbeck.recipes.study.options import CompareConfig, TuningOptions
from limbeck.recipes.train import distill as distillation
from tests.recipes.runs import STUDENT_SHAPE, snapshot, weights_of

TRAIN = TrainOptions(
    epochs=1, global_batch_size=16, precision="fp32", device="cpu", probe_every=100, log_every=1
)
SMALL_DINO = "small=dino,hidden_dim=16,bottleneck_dim=8,out_dim=16,optim.base_lr=1e-3"


class Failing(MaskedPixel):
    """Fails in its second step, as any class of one's own may; the first two look for gradients."""

    calls = 0

    def forward(self, student, teacher, batch):
        if self.training and len(batch.keys) > 2:
            Failing.calls += 1
            if Failing.calls == 2:
                raise RuntimeError("a bug of one's own")
        return super().forward(student, teacher, batch)


def config_of(images, out, *arms, **changes) -> CompareConfig:
    values = {
        "arms": arms,
        "seeds": 1,
        "out": out,
        "student": STUDENT_SHAPE,
        "data": DataOptions(root=str(images), holdout_ratio=0.25, num_workers=0),
        "optim": OptimOptions(base_lr=1e-2),
        "train": TRAIN,
        "tune": TuningOptions(train=TRAIN),
        "embed": EmbedOptions(crop_ratio=1.0),
    }
    return CompareConfig(**values | changes)


def test_all_arms_end_in_one_table(images, teacher, tmp_path):
    out = tmp_path / "out"
    arms = ("untrained", "scratch", "masked-pixel", "relation,drop_path_rate=0")
    config = config_of(images, out, *arms, teacher=TeacherOptions(source=str(teacher)))
    found = compare(config)
    assert not found.problems
    scores = {name: results[0].scores for name, results in found.results.items()}
    assert "finetuned_top1" not in scores["untrained"] and "knn_top1" not in scores["scratch"]
    for name in ("masked-pixel", "relation"):
        assert {"finetuned_top1", "knn_top1", "linear_top1"} <= scores[name].keys()
        assert found.values(name, "images_per_second")[0] > 0
        assert found.values(name, "seconds")[0] > 0
    assert "differ" not in " ".join(found.equal)
    assert report(found) + "\n" == (out / "table.md").read_text()
    tuned = json.loads((out / "relation_0_finetuned" / "student.json").read_text())
    assert tuned["architecture"]["num_heads"] == [3, 3]  # relation's own head count is taken back


def test_public_weights_are_fine_tuned_alike(images, student, teacher, tmp_path):
    arms = ("scratch", f"public=start,student.weights={teacher}")
    found = compare(config_of(images, tmp_path / "out", *arms))
    assert not found.problems
    scores = found.results["public"][0].scores
    assert {"knn_top1", "linear_top1", "finetuned_top1"} <= scores.keys()
    assert "finetuned_top1" in found.results["scratch"][0].scores
    tuned = limbeck.load(tmp_path / "out" / "public_0_finetuned")
    assert tuned.facts.embed_dim == limbeck.load(teacher).facts.embed_dim != STUDENT_SHAPE.embed_dim
    assert f"public differs in student.weights = {teacher}." in found.equal
    with pytest.raises(UserError, match="no file or folder"):  # before anything has trained
        compare(config_of(images, tmp_path / "no", "scratch", "public=start,student.weights=./x"))
    assert not list((tmp_path / "no").glob("*_0*"))


def test_fine_tuning_with_parts_of_the_labels(images, tmp_path):
    out = tmp_path / "out"
    config = config_of(images, out, "scratch", "masked-pixel", label_fractions=(1.0, 0.5))
    found = compare(config)
    assert not found.problems
    for name in ("scratch", "masked-pixel"):
        assert {"finetuned_top1", "finetuned_0.5_top1"} <= found.results[name][0].scores.keys()
    record = json.loads((out / "scratch_0_finetuned_labels0.5" / "student.json").read_text())
    assert record["config"]["data"]["label_fraction"] == 0.5
    assert "| fine-tuned % (50 % of labels) |" in report(found)
    before = snapshot(out / "scratch_0_finetuned")
    compare(replace(config, label_fractions=(1.0, 0.75)))
    assert snapshot(out / "scratch_0_finetuned") == before
    few = replace(config, out=tmp_path / "few", label_fractions=(0.1,))
    found = compare(few)
    assert any("1 steps of 2 images with 10 % of the labels." in each for each in found.equal)
    record = json.loads((few.out / "scratch_0_finetuned_labels0.1" / "student.json").read_text())
    assert record["steps"] == 1 and record["config"]["train"]["global_batch_size"] == 2


def test_images_that_do_not_fill_a_batch_are_compared_in_smaller_ones(images, tmp_path, caplog):
    large = replace(TRAIN, global_batch_size=256)
    config = config_of(
        images, tmp_path / "out", "masked-pixel", train=large, tune=TuningOptions(train=large)
    )
    found = compare(config)
    assert not found.problems and "--tune.train.global-batch-size 8" in caplog.text
    assert "of 8 images of pre-training" in found.equal[0]
    assert "steps of 8 images." in found.equal[1]
    assert "held-out images can't tell much" in found.equal[2]


def test_arms_can_be_added_but_not_changed(images, tmp_path):
    out = tmp_path / "out"
    config = config_of(images, out, "masked-pixel", fine_tune=False, tune=TuningOptions())
    found = compare(config)
    before = snapshot(out / "masked-pixel_0")
    again = compare(replace(config, arms=("masked-pixel", SMALL_DINO)))
    assert snapshot(out / "masked-pixel_0") == before
    assert again.values("masked-pixel", "seconds") == found.values("masked-pixel", "seconds")
    assert again.values("small", "knn_top1")
    assert "small differs in optim.base_lr = 0.001." in again.equal
    with pytest.raises(UserError, match="holds another run.*mask_ratio is 0.75 there and 0.5"):
        compare(replace(config, arms=("masked-pixel,mask_ratio=0.5",)))
    with pytest.raises(UserError, match="holds another run: optim.base_lr"):
        compare(replace(config, optim=OptimOptions(base_lr=1.0)))


def test_a_stopped_comparison_goes_on_where_it_was(images, tmp_path, monkeypatch):
    config = config_of(images, tmp_path / "out", "masked-pixel", SMALL_DINO, fine_tune=False)
    config = replace(config, tune=TuningOptions())
    distill = distillation.distill

    def stopped(own):
        if own.method == "dino":
            raise Interrupted("Stopped by Ctrl-C.", 2)
        return distill(own)

    monkeypatch.setattr(distillation, "distill", stopped)
    with pytest.raises(Interrupted, match="Ctrl-C"):
        compare(config)
    assert (tmp_path / "out" / "table.md").exists()
    weights = weights_of(tmp_path / "out" / "masked-pixel_0")
    monkeypatch.undo()
    found = compare(config)
    assert weights_of(tmp_path / "out" / "masked-pixel_0") == weights
    assert found.results["small"][0].scores and not found.problems


def test_an_arm_that_fails_does_not_end_the_others(images, tmp_path):
    Failing.calls = 0
    arms = (f"{__name__}:Failing", "masked-pixel,mask_ratio=0.99", "dino,out_dim=16")
    config = config_of(images, tmp_path / "out", *arms, fine_tune=False, tune=TuningOptions())
    found = compare(replace(config, seeds=2))
    assert found.failures.keys() == {"Failing", "masked-pixel"}
    place = f"{__file__}, line {Failing.forward.__code__.co_firstlineno + 4}, in forward"
    assert found.failures["Failing"] == f"{place}: RuntimeError: a bug of one's own"
    assert "keeps 0 of 16 patches" in found.failures["masked-pixel"]
    assert len(found.results["dino"]) == 2 and len(found.results["Failing"]) == 1
    assert f"Failing failed: {place}: RuntimeError" in report(found)


def test_where_no_arm_can_run_that_is_an_error(images, tmp_path):
    with pytest.raises(UserError, match="No arm can run; masked-pixel: mask_ratio 0.99"):
        compare(config_of(images, tmp_path / "out", "scratch", "masked-pixel,mask_ratio=0.99"))


def test_unlabelled_images_are_compared_by_neighbours(unlabelled, teacher, tmp_path):
    config = config_of(unlabelled, tmp_path / "out", "untrained", "masked-pixel", "relation")
    with pytest.raises(UserError, match="relation needs a teacher"):
        compare(config)
    found = compare(replace(config, teacher=TeacherOptions(source=str(teacher))))
    assert 0 <= found.values("relation", "neighbours")[0] <= 1
    assert "Best by teacher's neighbours %" in report(found)
    alone = replace(config, arms=("masked-pixel",), out=tmp_path / "alone")
    with pytest.raises(UserError, match="no labels.*pass --teacher"):
        compare(alone)
    named = replace(config, teacher=TeacherOptions(source=str(teacher)))
    with pytest.raises(UserError, match="'scratch' needs labels"):
        compare(replace(named, arms=("scratch", "relation"), out=tmp_path / "scratch"))


@pytest.mark.parametrize(
    ("arms", "changes", "message"),
    [
        (("dino",), {"teacher": TeacherOptions(source="timm:vit_base_patch16_224")}, "No arm has"),
        (("dino", "scratch"), {"fine_tune": False, "tune": TuningOptions()}, "leave out it"),
        (("dino",), {"fine_tune": False}, "Options of --tune have no effect"),
        (
            ("dino",),
            {"fine_tune": False, "tune": TuningOptions(), "label_fractions": (0.1,)},
            "label_fractions has no effect",
        ),
        (("dino",), {"label_fractions": (0.1, 0.1)}, "each part once"),
        (("relation",), {}, "method relation needs a teacher"),
        (("dino,optim.warmup_epochs=5",), {}, "leaves nothing"),
        (
            ("dino",),
            {"tune": TuningOptions(train=TRAIN, optim=OptimOptions(optimizer="sgd", eps=1e-3))},
            "optim.eps has no effect",
        ),
        (
            ("dino",),
            {"tune": TuningOptions(train=TRAIN, mix=MixOptions(mix_prob=0.5))},
            "no effect without mixing",
        ),
    ],
)
def test_what_does_not_fit_is_refused_at_once(images, tmp_path, arms, changes, message):
    with pytest.raises(UserError, match=message):
        compare(config_of(images, tmp_path / "out", *arms, **changes))
    assert not (tmp_path / "out").exists()


def test_a_student_that_can_t_be_tuned_so_is_told_before_any_arm_has_trained(images, tmp_path):
    without_cls = replace(STUDENT_SHAPE, name="vit_base_patch16_siglip_224")
    tune = TuningOptions(train=TRAIN, global_pool="token")
    out = tmp_path / "out"
    with pytest.raises(UserError, match="token"):
        compare(config_of(images, out, "masked-pixel", student=without_cls, tune=tune))
    assert not any(out.glob("masked-pixel*"))


def test_scratch_has_neither_layer_decay_nor_a_head_of_its_own(images, tmp_path):
    optim = OptimOptions(layer_decay=0.5, head_lr_scale=0.5)
    config = config_of(
        images, tmp_path, "scratch", "mae=masked-pixel", tune=TuningOptions(optim=optim)
    )
    scratch, arm = (tuning_config(config, each, 0, 1.0) for each in read_arms(config.arms))
    assert (scratch.optim.layer_decay, scratch.optim.head_lr_scale) == (1, 1)
    assert arm.optim == optim
    by_blocks = OptimOptions(layer_decay=0.5, layer_decay_count="blocks")
    config = replace(config, tune=TuningOptions(optim=by_blocks))
    scratch, arm = (tuning_config(config, each, 0, 1.0) for each in read_arms(config.arms))
    assert scratch.optim == OptimOptions() and arm.optim == by_blocks


def test_several_processes_are_refused(images, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process"):
        compare(config_of(images, tmp_path / "out", "dino"))


def test_the_command_shows_the_table_and_exits_with_1_for_a_failed_arm(images, tmp_path, capsys):
    words = [
        *("compare", "--data", str(images), "--data.num-workers", "0"),
        *("--out", str(tmp_path / "out"), "--seeds", "1", "--no-fine-tune"),
        *("--student", "vit_tiny", "--student.img-size", "32", "--student.patch-size", "8"),
        *("--student.embed-dim", "24", "--student.depth", "2", "--student.num-heads", "3"),
        *("--train.epochs", "1", "--train.global-batch-size", "16"),
        *("--methods", "untrained", "masked-pixel"),
    ]
    cli.run(words)
    shown = capsys.readouterr().out
    assert shown.startswith("| arm") and "| masked-pixel |" in shown and "Equal for all" in shown
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "masked-pixel-x=masked-pixel,mask_ratio=0.99"])
    assert stopped.value.code == 1
    assert "failed" in capsys.readouterr().out
