"""The start and the fine-tuning of a comparison's arms."""

from dataclasses import replace

import pytest
import torch

from limbeck.models.origins.load import load_encoder
from limbeck.recipes.arms import Arm
from limbeck.recipes.compare import CompareConfig
from limbeck.recipes.trials import Trials, tuning_config
from tests.recipes.runs import STUDENT_SHAPE


@pytest.fixture
def trials():
    bare = Trials.__new__(Trials)
    bare.device = torch.device("cpu")
    return bare


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


def test_every_seed_has_a_start_of_its_own_which_is_kept(trials, tmp_path):
    trials.config = CompareConfig(student=STUDENT_SHAPE)
    folders = [tmp_path / name for name in "ab"]
    for seed, folder in enumerate(folders):
        trials._save_start(seed, folder)
    first, second = (load_encoder(str(folder)).state_dict() for folder in folders)
    name = next(name for name in first if name.endswith("qkv.weight"))
    assert not torch.equal(first[name], second[name])
    trials._save_start(1, folders[0])
    assert torch.equal(load_encoder(str(folders[0])).state_dict()[name], first[name])
