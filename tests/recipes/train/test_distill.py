"""``distill`` as a function: what appears, what is refused, and what each option does."""

import json
import shutil
import signal
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

import limbeck
from limbeck.data.options import DataOptions, PairMixOptions
from limbeck.data.skipped import SkippedLog
from limbeck.engine.distributed import Ranks
from limbeck.engine.loop import Interrupted
from limbeck.engine.options import OptimOptions
from limbeck.errors import RunError, UserError
from limbeck.methods.options import (
    ClsTokenOptions,
    FeatureOptions,
    MaskedPixelOptions,
    RelationOptions,
    SparseLogitOptions,
)
from limbeck.models.build import build_student
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.recipes.look.evaluate import evaluate
from limbeck.recipes.look.inspect import InspectConfig, inspect
from limbeck.recipes.look.inspect import report as inspected
from limbeck.recipes.look.options import EvaluateConfig
from limbeck.recipes.run.images import open_images
from limbeck.recipes.run.networks import build_networks
from limbeck.recipes.train.distill import check, distill, report
from limbeck.recipes.train.finetune import finetune
from limbeck.recipes.train.pretraining import plan_pretraining
from tests.recipes.runs import (
    STUDENT_SHAPE,
    assert_same_student,
    distill_config,
    draw_unlabelled,
    finetune_config,
    metrics_of,
    snapshot,
    teacher_config,
    weights_of,
)

OWN = '''
import os
from pathlib import Path

import torch

from limbeck.methods.options import RelationOptions
from limbeck.methods.relation import Relation

CALLS = []


class Counting(Relation):
    """Relation distillation in which something happens before a loss."""

    Options = RelationOptions

    def forward(self, student, teacher, batch):
        losses = super().forward(student, teacher, batch)
        CALLS.append(batch.keys)
        return self.happen(losses)

    def happen(self, losses):
        return losses


class Interrupted(Counting):
    """Gets Ctrl-C at its fifth step where a file named armed is in the working folder."""

    def happen(self, losses):
        if Path("armed").exists() and len(CALLS) == 7:  # the first two look for gradients
            os.kill(os.getpid(), {signal})
        return losses


class NotFinite(Counting):
    """Is not a number at its third step."""

    def happen(self, losses):
        if len(CALLS) == 5:
            return type(losses)(total=losses.total * torch.nan, parts=losses.parts)
        return losses
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A user's own module ``own_distill_method``, freshly imported; the working folder is its."""
    (tmp_path / "own_distill_method.py").write_text(OWN.replace("{signal}", str(signal.SIGINT)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_distill_method", raising=False)
    return tmp_path


def test_the_files_of_a_run(student):
    names = {entry.name for entry in student.iterdir()}
    assert names == {
        "student.safetensors",
        "student.json",
        "metrics.jsonl",
        "checkpoint.pt",
        "config.json",
        "fingerprint.json",
        "finished.json",
        "tensorboard",
        ".lock",
    }
    steps, probes = metrics_of(student)
    assert [record["step"] for record in steps] == list(range(1, 9))
    assert set(steps[0]["losses"]) == {"total", "qk", "vv"}
    assert probes[-1]["step"] == 8


def test_the_loss_falls(student):
    losses = [record["losses"]["total"] for record in metrics_of(student)[0]]
    assert sum(losses[-2:]) < 0.9 * sum(losses[:2])


def test_timm_alone_loads_the_student_and_says_the_same(student, images):
    record = json.loads((student / "student.json").read_text())
    model = timm.create_model(record["timm"]["name"], **record["timm"]["kwargs"]).eval()
    weights = safetensors.torch.load_file(student / "student.safetensors")
    model.load_state_dict(weights, strict=True)
    for path, values in record["timm"]["heads"].items():
        vars(model.get_submodule(path)).update(values)
    encoder = limbeck.load(student)
    assert encoder.facts.num_heads == (3, 4)
    pixels = torch.rand(2, 3, 32, 32)
    mean, std = (
        torch.tensor(record["preprocessing"][name]).view(3, 1, 1) for name in ("mean", "std")
    )
    with torch.no_grad():
        said = model.forward_features((pixels - mean) / std)
        torch.testing.assert_close(encoder(pixels).tokens, said, atol=1e-6, rtol=1e-5)


def test_what_the_record_says(student, teacher, images):
    record = json.loads((student / "student.json").read_text())
    assert record["made_by"] == "limbeck distill"
    assert record["teacher"]["weight_hash"] == limbeck.load(teacher).facts.origin["weight_hash"]
    assert record["teacher"]["num_heads"] == [4, 4, 4]
    assert record["architecture"]["num_heads"] == [3, 4]
    assert record["data"]["root"] == str(images)
    assert len(record["data"]["fingerprint"]) == 32
    assert record["config"]["student"]["embed_dim"] == 24
    assert record["versions"]["torch"] == version("torch")
    assert record["steps"] == 8
    assert set(record["scores"]) == {"knn_top1", "linear_top1"}
    config = json.loads((student / "config.json").read_text())
    assert config["verb"] == "distill"
    assert config["resolved"]["total_steps"] == 8
    assert config["resolved"]["peak_lr"] == pytest.approx(1e-2 * 16 / 256)


def test_the_report_says_what_to_type_next(student):
    said = report(student)
    assert f"limbeck evaluate --student {student}" in said
    assert f"limbeck finetune --student {student}" in said
    assert "--student 'my runs/a' " in report(Path("my runs/a"))


def test_the_same_again_changes_nothing(student, images, teacher, caplog):
    caplog.set_level("INFO")
    before = snapshot(student)
    assert distill(distill_config(images, student, teacher)) == student
    assert snapshot(student) == before
    assert f"{student} is finished already; nothing to do." in caplog.text


@pytest.fixture
def copy(student, tmp_path):
    """A copy of the finished run that may be written into."""
    return shutil.copytree(student, tmp_path / "run")


def test_a_student_that_is_gone_is_written_anew(copy, student, images, teacher):
    (copy / "student.safetensors").unlink()
    distill(distill_config(images, copy, teacher))
    own = (student / "student.safetensors").read_bytes()
    assert (copy / "student.safetensors").read_bytes() == own


def test_another_config_in_its_folder_is_refused(copy, images, teacher):
    before = snapshot(copy)
    with pytest.raises(UserError, match="holds another run: seed is 0 there and 1 here"):
        distill(distill_config(images, copy, teacher, seed=1))
    assert snapshot(copy) == before


def test_other_images_or_another_teacher_are_another_run(copy, images, teacher, tmp_path):
    before = snapshot(copy)
    moved = shutil.copytree(images, tmp_path / "moved")
    (moved / "red" / "000.png").rename(moved / "red" / "new.png")
    config = distill_config(images, copy, teacher)
    with pytest.raises(UserError, match="fingerprint of data"):
        distill(replace(config, data=replace(config.data, root=str(moved))))
    other = distill(replace(teacher_config(images, tmp_path / "teacher"), seed=1))
    with pytest.raises(UserError, match="fingerprint of teacher"):
        distill(replace(config, teacher=TeacherOptions(source=str(other))))
    assert snapshot(copy) == before


def test_overwrite_replaces(copy, images, teacher):
    before = weights_of(copy)
    distill(distill_config(images, copy, teacher, seed=1, overwrite=True))
    assert weights_of(copy) != before
    assert json.loads((copy / "student.json").read_text())["config"]["seed"] == 1
    assert [record["step"] for record in metrics_of(copy)[0]] == list(range(1, 9))


def test_a_folder_that_is_no_run_is_left_alone(images, teacher, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"is not empty and holds no run \(thesis.txt\)"):
            distill(distill_config(images, tmp_path, teacher, overwrite=overwrite))
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_run_follows_from_its_config(student, images, teacher, tmp_path):
    """Bit by bit, whatever the other processes, intervals and micro-batches."""
    config = distill_config(images, tmp_path / "again", teacher)
    data, train = config.data, config.train
    again = replace(
        config,
        data=replace(data, num_workers=1),
        train=replace(train, probe_every=3, save_every=2, log_every=3),
    )
    assert weights_of(distill(again)) == weights_of(student)
    parts = replace(config, out=tmp_path / "parts", train=replace(train, accumulate_steps=4))
    assert_same_student(distill(parts), student)


@pytest.mark.parametrize("relations", ['["qk", "vv"]', '["vv"]'])
def test_stopped_and_continued_ends_the_same(own, images, teacher, tmp_path, relations):
    def config(name):
        return distill_config(
            images,
            tmp_path / name,
            teacher,
            method="own_distill_method:Interrupted",
            relation=RelationOptions(),
            method_options=("drop_path_rate=0.3", f"relations={relations}"),
        )

    whole = distill(config("whole"))
    sys.modules["own_distill_method"].CALLS.clear()
    armed = own / "armed"
    armed.touch()
    with pytest.raises(Interrupted, match="Stopped by Ctrl-C after step 5, which is saved") as e:
        distill(config("stopped"))
    assert e.value.exit_code == 128 + signal.SIGINT
    assert not (tmp_path / "stopped" / "student.safetensors").exists()
    armed.unlink()
    with pytest.raises(UserError, match="has not finished"):
        limbeck.load_encoder(tmp_path / "stopped")
    stopped = distill(config("stopped"))
    assert weights_of(stopped) == weights_of(whole)
    assert [record["step"] for record in metrics_of(stopped)[0]] == list(range(1, 9))


def test_a_loss_that_is_not_finite_stops_with_its_samples(own, images, teacher, tmp_path):
    config = distill_config(
        images,
        tmp_path / "run",
        teacher,
        method="own_distill_method:NotFinite",
        relation=RelationOptions(),
    )
    with pytest.raises(RunError, match=r"Step 3 is not finite: losses total nan, qk .*\.png"):
        distill(config)
    record = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    keys = [key for part in record["micro_batches"] for key in part["keys"]]
    assert tuple(keys) == sys.modules["own_distill_method"].CALLS[4]
    assert not (tmp_path / "run" / "student.safetensors").exists()


def test_an_own_method_in_the_working_folder(own, images, teacher, tmp_path):
    config = distill_config(
        images,
        tmp_path / "run",
        teacher,
        method="own_distill_method:Counting",
        relation=RelationOptions(),
        method_options=("drop_path_rate=0.0", "color_jitter=[0.4, 0.4, 0.4]"),
    )
    same = distill(replace(distill_config(images, tmp_path / "same", teacher)))
    assert weights_of(distill(config)) == weights_of(same)


def spoil(folder, count):
    """Cut the first images short."""
    bad = sorted(folder.glob("*.png"))[:count]
    for file in bad:
        file.write_bytes(file.read_bytes()[:200])
    return {file.name for file in bad}


def test_a_corrupt_image_is_skipped_and_listed(teacher, tmp_path, capsys):
    images = draw_unlabelled(tmp_path / "images")
    bad = spoil(images, 2)
    data = DataOptions(root=str(images), num_workers=0, max_bad_ratio=0.1, holdout_ratio=0.0)
    run = distill(distill_config(images, tmp_path / "run", teacher, data=data))
    lines = (run / "skipped.jsonl").read_text().splitlines()
    assert {json.loads(line)["key"] for line in lines} == bad
    assert all(json.loads(line)["reason"] for line in lines)
    said = " ".join(capsys.readouterr().err.split())
    assert "2 images could not be used and were skipped; they are listed in" in said


def test_too_many_corrupt_images_stop_with_the_list(teacher, tmp_path):
    images = draw_unlabelled(tmp_path / "images")
    bad = spoil(images, 3)
    data = DataOptions(root=str(images), num_workers=0, max_bad_ratio=0.02, holdout_ratio=0.0)
    with pytest.raises(RunError) as caught:
        distill(distill_config(images, tmp_path / "run", teacher, data=data))
    assert caught.value.exit_code == 1
    assert "of 48 images can't be used, more than --data.max-bad-ratio 0.02" in str(caught.value)
    listed = (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()
    assert {json.loads(line)["key"] for line in listed} <= bad
    assert all(json.loads(line)["key"] in str(caught.value) for line in listed)


def test_too_few_images_for_the_batch_are_fitted_to(images, teacher, tmp_path):
    config = distill_config(images, tmp_path / "run", teacher)
    train = replace(config.train, global_batch_size=256)
    distill(replace(config, train=train))
    record = json.loads((tmp_path / "run" / "student.json").read_text())
    assert record["config"]["train"]["global_batch_size"] == 8 and record["steps"] == 4 * 4
    distill(replace(config, train=train))  # which goes on, so nothing is left to do
    train = replace(train, accumulate_steps=32)
    with pytest.raises(UserError, match="There are 36 images to train on, fewer than .* 256"):
        distill(replace(config, out=tmp_path / "other", train=train))
    assert not (tmp_path / "other").exists()


def test_unlabelled_images_give_probes_of_agreement(unlabelled, teacher, tmp_path):
    run = distill(distill_config(unlabelled, tmp_path / "run", teacher))
    probes = metrics_of(run)[1]
    assert all(set(record["probe"]) == {"neighbours", "cka"} for record in probes)
    assert json.loads((run / "student.json").read_text())["scores"] == probes[-1]["probe"]


UNTRAINED = ["attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]


@pytest.mark.parametrize("how", ["keep", "reinit", "zero"])
def test_the_untrained_tail(images, teacher, tmp_path, how):
    config = distill_config(images, tmp_path / "run", teacher, untrained_tail=how)
    run = distill(config)
    record = json.loads((run / "student.json").read_text())
    assert record["positions"] == "fixed sin-cos"
    tail = record["untrained"]
    parts = [*(f"blocks.1.{name}" for name in UNTRAINED), "norm"]
    names = {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    assert tail["how"] == how
    assert set(tail["parameters"]) == names
    weights = limbeck.load(run).model.state_dict()
    assert tail["num_values"] == sum(weights[name].numel() for name in names)
    start = build_student(STUDENT_SHAPE, seed=config.seed).model.state_dict()
    for name, value in weights.items():
        if "pos_embed" in name:
            continue
        is_zero = how == "zero" and ("blocks.1.attn.proj" in name or "blocks.1.mlp.fc2" in name)
        is_drawn = name in names and name.endswith("weight") and "norm" not in name
        if is_zero:
            assert name in tail["zeroed"]
            assert not value.any()
        elif is_drawn:  # biases and norms start at the same values whenever they are drawn
            assert torch.equal(value, start[name]) is (how == "keep"), name
        elif name not in names:
            assert not torch.equal(value, start[name]), f"{name} was not trained"


@pytest.mark.parametrize("how", ["keep", "reinit"])
def test_rows_that_the_relation_leaves_untrained(images, teacher, tmp_path, how, monkeypatch):
    """VV alone: weight decay would shrink queries and keys, which nothing else touches."""
    probed = []

    def build_probe(options, images, student, *rest):
        def probe(module, step):
            probed.append(student.model.blocks[1].attn.qkv.weight[:48].detach().clone())
            return {}

        return probe

    monkeypatch.setattr("limbeck.recipes.train.pretraining.build_probe", build_probe)
    options = RelationOptions(relations=("vv",), drop_path_rate=0.0)
    config = distill_config(
        images, tmp_path / "run", teacher, relation=options, untrained_tail=how,
        optim=OptimOptions(base_lr=1e-2, weight_decay=100.0),
    )  # fmt: skip
    # The average is taken after the last probe.
    run = distill(replace(config, train=replace(config.train, ema_decay=0.9, probe_every=1)))
    tail = json.loads((run / "student.json").read_text())["untrained"]
    rows = {name for name in tail["parameters"] if "qkv" in name}
    assert rows == {
        f"blocks.1.attn.qkv.{part}[{kind}]"
        for part in ("weight", "bias")
        for kind in ("queries", "keys")
    }
    start = build_student(STUDENT_SHAPE, seed=0).model.blocks[1].attn.qkv.weight
    own = limbeck.load(run).model.blocks[1].attn.qkv.weight
    assert torch.equal(own[:48], start[:48]) is (how == "keep")
    assert own[:48].std().item() == pytest.approx(start[:48].std().item(), rel=0.1)
    assert own[48:].std() < 0.8 * start[48:].std()
    assert len(probed) == 8 and all(torch.equal(rows, own[:48]) for rows in probed)


@pytest.mark.parametrize(
    ("how", "target", "message"),
    [
        ("reinit", "tokens", r"leaves untrained \(norm.weight, norm.bias\) would be as it is"),
        ("zero", "tokens", "untrained_tail zero has no effect"),
        ("reinit", "output", r"\(nothing\) would be as it is; leave it out"),
    ],
)
def test_a_tail_that_nothing_can_be_done_about(images, teacher, tmp_path, how, target, message):
    options = FeatureOptions(target=target, drop_path_rate=0.0)
    config = distill_config(
        images, tmp_path / "run", teacher, method="feature", feature=options,
        relation=RelationOptions(), untrained_tail=how,
    )  # fmt: skip
    with pytest.raises(UserError, match=message):
        distill(config)


@pytest.mark.parametrize("method", ["feature", "masked-pixel"])
def test_layer_decay_with_a_method_that_owns_weights(images, teacher, tmp_path, method):
    """Its weights come after the student's last layer, at the full rate."""
    is_feature = method == "feature"
    config = distill_config(
        images, tmp_path / "run", teacher, method=method, relation=RelationOptions(),
        teacher=TeacherOptions(source=str(teacher) if is_feature else None),
        optim=OptimOptions(base_lr=1e-2, layer_decay=0.75),
    )  # fmt: skip
    run = distill(config)
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    scales = {group["lr_scale"] for group in state["optimizer"]["param_groups"]}
    assert scales == {0.75**i for i in range(4)}  # embedding, two blocks, what comes after
    assert any(name.startswith("method.") for name in state["module"])


def test_a_start_from_weights(images, teacher, student, tmp_path):
    shape = StudentOptions(weights=str(student))
    config = distill_config(images, tmp_path / "run", teacher, student=shape)
    run = distill(config)
    assert limbeck.load(run).facts.num_heads == (3, 4)
    first = metrics_of(run)[0][0]["losses"]["total"]
    assert first < 0.8 * metrics_of(student)[0][0]["losses"]["total"]


def test_what_the_method_keeps_is_beside_the_student(teacher, student):
    record = json.loads((teacher / "student.json").read_text())
    assert record["kept"]["decoder"]["facts"] == {"num_heads": 1, "grid": [4, 4]}
    assert record["positions"] == "fixed sin-cos"
    state = torch.load(teacher / "checkpoint.pt", weights_only=True)["module"]
    start = "method.reconstruction.decoder."
    kept = safetensors.torch.load_file(teacher / "decoder.safetensors")
    assert len(kept) == 20
    assert all(torch.equal(value, state[start + name]) for name, value in kept.items())
    assert "kept" not in json.loads((student / "student.json").read_text())


def test_whose_weights_went_in_is_said_and_kept(images, teacher, student, tmp_path, capsys):
    for name, run in (("big", teacher), ("small", student)):
        torch.save(limbeck.load(run).model.state_dict(), tmp_path / f"{name}.pth")
    config = distill_config(
        images, tmp_path / "run", tmp_path / "big.pth",
        student=StudentOptions(weights=str(tmp_path / "small.pth"), img_size=32, num_heads=3),
    )  # fmt: skip
    run = distill(replace(config, teacher=replace(config.teacher, num_heads=4, img_size=32)))
    said = capsys.readouterr().err
    for role, name in (("start", "small"), ("teacher", "big")):
        assert f"The {role} {tmp_path}/{name}.pth: its licence is not known" in said
    line = json.loads((run / "student.json").read_text())["lineage"]
    assert [(each["role"], each["terms"]) for each in line] == [
        ("start", "unknown"),
        ("teacher", "unknown"),
    ]
    assert line[1]["weight_hash"] == limbeck.load(teacher).facts.origin["weight_hash"]
    told = " ".join(inspected(inspect(InspectConfig(file=str(run)))).split())
    assert f"from teacher {tmp_path}/big.pth, licence not known, weights" in told
    again = distill(distill_config(images, tmp_path / "again", run))
    line = json.loads((again / "student.json").read_text())["lineage"]
    assert [each["role"] for each in line] == ["start of the teacher", "teacher of the teacher"]


def test_masked_pixels_go_on_from_a_run(images, teacher, tmp_path):
    config = teacher_config(images, tmp_path / "run")
    run = distill(replace(config, student=StudentOptions(weights=str(teacher))))
    first = metrics_of(run)[0][0]["losses"]["pixel"]
    assert first < metrics_of(teacher)[0][0]["losses"]["pixel"]
    assert json.loads((run / "student.json").read_text())["positions"] == "fixed sin-cos"
    before, after = (limbeck.load(path).model.state_dict() for path in (teacher, run))
    assert torch.equal(before["pos_embed"], after["pos_embed"])
    assert not torch.equal(before["norm.weight"], after["norm.weight"])


def test_a_teacher_of_another_patch_size(images, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    big = replace(teacher_config(images, tmp_path / "teacher"))
    shape = replace(big.student, patch_size=16, img_size=64)
    teacher = distill(replace(big, student=shape))
    small = replace(STUDENT_SHAPE, img_size=24)
    run = distill(distill_config(images, tmp_path / "run", teacher, student=small))
    assert limbeck.load(run).facts.grid == (3, 3)
    assert "The teacher gets images of 48 px (its patches have 16 px)" in caplog.text
    assert "3 x 3" in caplog.text


def test_grids_that_differ_are_refused_before_the_run(images, teacher, tmp_path):
    wrong = TeacherOptions(source=str(teacher), img_size=64)
    with pytest.raises(UserError, match="8 x 8 .* one of 4 x 4; set --teacher.img-size 32"):
        distill(distill_config(images, tmp_path / "run", teacher, teacher=wrong))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("jitter", [(0.4, 0.4, 0.4), (0.0, 0.0, 0.0)])
def test_colour_jitter_is_the_student_s_alone(images, teacher, tmp_path, jitter):
    options = RelationOptions(color_jitter=jitter, drop_path_rate=0.0)
    config = distill_config(images, tmp_path, teacher, relation=options)
    opened, skipped = open_images(config.data), SkippedLog(None, 36, 1.0)
    nets = build_networks(config, torch.device("cpu"))
    plan = plan_pretraining(config, nets, opened, Ranks())
    batch = next(plan.stream(config, skipped, 0, 1))
    same = [torch.equal(*pair) for pair in zip(batch.images, batch.teacher_images, strict=True)]
    assert same == [not any(jitter)] * 16


def test_only_a_comparison_of_patches_needs_one_grid(images, teacher, tmp_path):
    wide = TeacherOptions(source=str(teacher), img_size=64)
    config = distill_config(
        images, tmp_path / "run", teacher, teacher=wide, method="cls-token",
        relation=RelationOptions(),
    )  # fmt: skip
    for masked in ({}, {"mask_ratio": 0.5, "teacher_sees": "all"}):
        distill(replace(config, cls_token=ClsTokenOptions(**masked), overwrite=True))
    with pytest.raises(UserError, match="set --teacher.img-size 32"):
        distill(replace(config, cls_token=ClsTokenOptions(mask_ratio=0.5), overwrite=True))


def test_precision_average_and_clipping(images, teacher, tmp_path):
    config = distill_config(images, tmp_path / "run", teacher)
    train = replace(config.train, precision="bf16", ema_decay=0.9)
    run = distill(replace(config, train=train, optim=replace(config.optim, clip_grad=0.05)))
    steps = metrics_of(run)[0]
    assert steps[-1]["losses"]["total"] < steps[0]["losses"]["total"]
    assert all(torch.isfinite(value).all() for value in limbeck.load(run).state_dict().values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "relatoin"}, "Did you mean 'relation'?"),
        ({"method_options": ("beta=1",)}, "--method-options are for your own method"),
        ({"masked_pixel": MaskedPixelOptions(mask_ratio=0.5)}, "Options of --masked-pixel have no"),
        ({"method": "masked-pixel"}, "The method masked-pixel has no teacher; leave --teacher out"),
        ({"teacher": TeacherOptions()}, "The method relation needs a teacher"),
        ({"method": "no_such_module:Any"}, "there is no module 'no_such_module' here"),
        ({"student": StudentOptions(name="vit_tyni")}, "Did you mean 'vit_tiny'?"),
    ],
)
def test_what_check_refuses(images, teacher, tmp_path, changes, message):
    values = {"relation": RelationOptions()} | changes
    with pytest.raises(UserError) as caught:
        check(distill_config(images, tmp_path / "run", teacher, **values))
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def pupil(images, classifier, tmp_path_factory):
    """A student that learnt its classes from a classifier, and a little from labels."""
    options = SparseLogitOptions(
        rand_augment="", erase_prob=0.0, label_weight=0.1,
        mix=PairMixOptions(mixup_alpha=0.8, cutmix_alpha=1.0),
    )  # fmt: skip
    config = distill_config(
        images, tmp_path_factory.mktemp("pupil") / "run", classifier,
        method="sparse-logit", relation=RelationOptions(), sparse_logit=options,
    )  # fmt: skip
    return distill(replace(config, train=replace(config.train, epochs=12.0)))


def test_a_student_keeps_the_classifier_that_learnt_the_teacher_s_classes(pupil, classifier):
    steps, probes = metrics_of(pupil)
    assert steps[-1]["losses"]["total"] < steps[0]["losses"]["total"]
    assert set(steps[0]["losses"]) == {"total", "soft", "label"} and probes
    student = limbeck.load(pupil)
    assert student.facts.num_classes == 3
    assert student.facts.origin["classes"] == ["blue", "green", "red"]
    record = json.loads((pupil / "student.json").read_text())
    assert record["untrained"]["parameters"] == []
    model = timm.create_model(record["timm"]["name"], **record["timm"]["kwargs"])
    model.load_state_dict(safetensors.torch.load_file(pupil / "student.safetensors"))


def test_what_comes_after_takes_such_a_student(pupil, images, tmp_path):
    two = tmp_path / "two"
    for name in ("blue", "red"):
        shutil.copytree(images / name, two / name)
    tuned = finetune(finetune_config(two, tmp_path / "tuned", pupil))
    assert limbeck.load(tuned).facts.num_classes == 2
    config = EvaluateConfig(
        student=(str(pupil),), num_labels=(1,), label_draws=1, measure_speed=False, device="cpu",
        data=DataOptions(root=str(images), holdout_ratio=0.25, num_workers=0),
    )  # fmt: skip
    assert evaluate(config).rows[0].scores["knn_top1"].mean > 0.5


def test_labels_that_are_not_there_are_missed_before_the_run(unlabelled, classifier, tmp_path):
    config = distill_config(
        unlabelled, tmp_path / "run", classifier, method="sparse-logit",
        relation=RelationOptions(), sparse_logit=SparseLogitOptions(label_weight=0.1),
    )  # fmt: skip
    with pytest.raises(UserError, match="the images have none where the teacher knows 3"):
        distill(config)
    assert not (tmp_path / "run").exists()


def test_a_pair_that_is_to_be_mixed_is_not_cut_in_two(images, classifier, tmp_path):
    """16 images in 16 micro-batches: each would be alone, and nothing mixed."""
    options = SparseLogitOptions(mix=PairMixOptions(mixup_alpha=0.8))
    config = distill_config(
        images, tmp_path / "run", classifier, method="sparse-logit",
        relation=RelationOptions(), sparse_logit=options,
    )  # fmt: skip
    with pytest.raises(UserError, match="16 micro-batches of a step have 1 each; .*multiple of 32"):
        distill(replace(config, train=replace(config.train, accumulate_steps=16)))
    assert not (tmp_path / "run").exists()


def test_any_classifier_of_timm_may_teach_classes_alone(images, tmp_path):
    teacher = TeacherOptions(source="timm:regnety_160.deit_in1k")
    config = distill_config(images, tmp_path, tmp_path, teacher=teacher)
    with pytest.raises(UserError, match="regnety_160"):
        check(replace(config, relation=RelationOptions()))
    check(replace(config, method="sparse-logit", relation=RelationOptions()))
