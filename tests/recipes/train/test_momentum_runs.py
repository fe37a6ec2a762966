"""Whole runs of methods with a momentum encoder: they go on bit by bit, in any precision."""

from dataclasses import replace

import pytest
import torch

from limbeck.errors import RunError, UserError
from limbeck.methods.distiller import Distiller
from limbeck.methods.options import DinoOptions, MocoV3Options
from limbeck.recipes.run.options import DistillConfig
from limbeck.recipes.train.distill import distill
from tests.recipes.runs import STUDENT_SHAPE, distill_config, metrics_of, weights_of

SECTIONS = {
    "moco-v3": {"moco_v3": MocoV3Options(hidden_dim=16, out_dim=8)},
    "dino": {
        "dino": DinoOptions(
            hidden_dim=16,
            bottleneck_dim=8,
            out_dim=16,
            last_layer_frozen=0.3,
            num_local_crops=1,
            local_img_size=16,
        )
    },
}


def config_of(method, images, out, **train) -> DistillConfig:
    plain = distill_config(images, out, out)
    return DistillConfig(
        out=out,
        method=method,
        student=STUDENT_SHAPE,
        data=plain.data,
        optim=plain.optim,
        train=replace(plain.train, save_every=3, probe_every=100, **train),
        probes=plain.probes,
        **SECTIONS[method],
    )


@pytest.mark.parametrize("method", SECTIONS)
def test_a_run_that_broke_off_ends_bit_by_bit_the_same(method, images, tmp_path, monkeypatch):
    whole = distill(config_of(method, images, tmp_path / "whole"))
    after_step = Distiller.after_step

    def breaks_off(self, step, total_steps):
        if step == 5:
            raise RunError("broken off")
        after_step(self, step, total_steps)

    monkeypatch.setattr(Distiller, "after_step", breaks_off)
    with pytest.raises(RunError, match="broken off"):
        distill(config_of(method, images, tmp_path / "run"))
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 3
    names = state["module"].keys()
    assert any(name.startswith("follower.") for name in names)
    assert any(name.startswith("method.teacher_head.") for name in names)
    monkeypatch.undo()
    run = distill(config_of(method, images, tmp_path / "run"))
    assert weights_of(run) == weights_of(whole)
    ends = [torch.load(each / "checkpoint.pt", weights_only=True) for each in (run, whole)]
    for name, value in ends[1]["module"].items():
        assert torch.equal(ends[0]["module"][name], value), name


@pytest.mark.parametrize("method", SECTIONS)
def test_runs_in_bf16_and_the_loss_is_that_of_whole_images(method, images, tmp_path):
    run = distill(config_of(method, images, tmp_path / "run", precision="bf16"))
    steps, _ = metrics_of(run)
    assert len(steps) == 8 and (run / "student.safetensors").exists()


def test_a_method_that_compares_images_does_not_accumulate(images, tmp_path):
    with pytest.raises(UserError, match="compares the images of a micro-batch.*leave it out"):
        distill(config_of("moco-v3", images, tmp_path / "run", accumulate_steps=2))


def test_dino_learns_the_same_in_two_micro_batches(images, tmp_path):
    one = distill(config_of("dino", images, tmp_path / "one"))
    two = distill(config_of("dino", images, tmp_path / "two", accumulate_steps=2))
    for a, b in zip(metrics_of(one)[0], metrics_of(two)[0], strict=True):
        assert a["losses"] == pytest.approx(b["losses"], abs=1e-4)


def test_a_teacher_has_no_place_beside_it(images, teacher, tmp_path):
    config = config_of("dino", images, tmp_path / "run")
    named = replace(config.teacher, source=str(teacher))
    with pytest.raises(UserError, match="has no teacher"):
        distill(replace(config, teacher=named))
