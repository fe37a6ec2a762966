"""One way to train: what a plan supplies is used, and what every training shares is done."""

from dataclasses import replace

import pytest
import torch

import limbeck
from limbeck.engine.distributed import Ranks
from limbeck.models.finished import read_record
from limbeck.recipes.run.train import rehearse, session, train
from tests.recipes.runs import distill_config, metrics_of

RANKS = Ranks(device=torch.device("cpu"))


def test_what_a_plan_supplies_is_used(plan):
    seen = []

    def score(skipped):
        seen.append(skipped.dir if hasattr(skipped, "dir") else "skipped")
        return lambda module, step: {"wanted": step / 100}

    own = replace(
        plan, verb="own", score=score, about=lambda: {"said": "of its kind"}, crop_ratio=0.5,
        others={"teacher": "mine"}, after_step=lambda step, total: seen.append(step),
    )  # fmt: skip
    folder = train(own, RANKS)
    assert seen == ["skipped", *range(1, 9)]
    record = read_record(folder)[1]
    assert record["made_by"] == "limbeck own" and record["said"] == "of its kind"
    assert record["scores"] == {"wanted": 0.08} and record["steps"] == 8
    assert record["untrained"]["num_values"] > 0
    assert len(metrics_of(folder)[0]) == 8
    assert limbeck.load(folder).facts.embed_dim == 24
    assert train(own, RANKS) == folder  # finished: nothing is done again
    assert seen == ["skipped", *range(1, 9)]


def test_another_run_s_folder_is_refused(plan):
    train(plan, RANKS)
    with pytest.raises(limbeck.UserError, match="teacher is"):
        train(replace(plan, others={"teacher": "another"}), RANKS)


def test_a_plan_whose_losses_depend_on_all_looks_for_nothing_untrained(plan):
    folder = train(replace(plan, untrained=None), RANKS)
    assert "untrained" not in read_record(folder)[1]


def test_a_rehearsal_shows_two_images_and_writes_nothing(plan):
    batches = []
    plan.module.register_forward_pre_hook(lambda module, given: batches.append(given[0]))
    rehearse(plan, RANKS)
    assert [len(batch.keys) for batch in batches] == [2]
    assert not plan.config.out.exists()


def test_a_session_settles_what_follows_from_images_and_machine(images, teacher, tmp_path):
    config = distill_config(images, tmp_path / "run", teacher)
    asked = replace(config, train=replace(config.train, precision="auto", global_batch_size=512))
    with session(asked) as (settled, opened, ranks):
        assert settled.train.precision in ("fp32", "bf16")
        assert settled.train.global_batch_size <= len(opened.train)
        assert ranks.world_size == 1
