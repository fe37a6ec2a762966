"""The start and the fine-tuning of a comparison's arms."""

from dataclasses import replace

import pytest

from limbeck.models.origins.load import load_encoder
from limbeck.recipes.run.networks import save_start
from limbeck.recipes.study.arms import Arm
from limbeck.recipes.study.options import CompareConfig
from limbeck.recipes.study.trials import remembered, tuning_config
from tests.recipes.runs import STUDENT_SHAPE, snapshot, weights_of


def test_a_fine_tuning_has_its_seed_its_labels_and_layer_decay_where_something_was_learnt(
    tmp_path,
):
    config = CompareConfig(out=tmp_path)
    tuned, scratch = (
        tuning_config(config, arm, 2, 0.1) for arm in (Arm("mine", "dino"), Arm("scratch", None))
    )
    assert tuned.out == tmp_path / "mine_2_finetuned_labels0.1"
    assert (tuned.seed, tuned.data.label_fraction, tuned.data.label_seed) == (2, 0.1, 2)
    assert tuned.optim == config.tune.optim and tuned.optim.layer_decay == 0.85
    assert scratch.optim == replace(tuned.optim, layer_decay=1.0)


def test_every_seed_has_a_start_of_its_own_which_is_kept(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for seed, folder in enumerate(folders):
        save_start(STUDENT_SHAPE, seed, folder)
    assert weights_of(folders[0]) != weights_of(folders[1])
    before = [snapshot(folder) for folder in folders]
    for seed, folder in enumerate(folders):
        save_start(STUDENT_SHAPE, seed, folder)
    assert [snapshot(folder) for folder in folders] == before


@pytest.mark.parametrize("change", [{"embed_dim": 12}, {"num_heads": 2}])  # the latter: no weights
def test_the_start_of_another_student_is_replaced(tmp_path, change):
    save_start(STUDENT_SHAPE, 0, tmp_path)
    save_start(replace(STUDENT_SHAPE, **change), 0, tmp_path)
    facts = load_encoder(tmp_path).facts
    expected = {"embed_dim": 24, "num_heads": 3} | change
    assert (facts.embed_dim, facts.num_heads[0]) == tuple(expected.values())


def test_what_was_measured_is_measured_again_where_something_else_is_asked(tmp_path):
    calls = []

    def measure():
        calls.append(len(calls))
        return {"scores": calls[-1]}

    asked = [{"size": (4, 4)}, {"size": (4, 4)}, {"size": (8, 8)}]
    found = [remembered(tmp_path / "found.json", each, measure)["scores"] for each in asked]
    assert found == [0, 0, 1]
