"""What the command line says of an arm."""

from dataclasses import replace
from pathlib import Path

import pytest

from limbeck.errors import UserError
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.recipes.study.arms import (
    Entry,
    arm_config,
    read_arms,
    run_dir,
    student_of,
    table_needs_teacher,
    tuned_dir,
    tuning_config,
)
from limbeck.recipes.study.options import CompareConfig

CONFIG = CompareConfig(out=Path("out"), teacher=TeacherOptions(source="timm:x"))


def read(text):
    (arm, _) = read_arms((text, "masked-pixel,mask_ratio=0.5"))
    return arm


def test_an_arm_is_a_method_with_a_name_and_options():
    words = 'relations=["qk", "vv"],softmax=false,optim.base-lr=1e-4,crop.scale=[0.5, 1.0]'
    arm = read(f"low=relation,{words}")
    assert (arm.name, arm.method) == ("low", "relation")
    assert arm.of_method == {"relations": ["qk", "vv"], "softmax": False}
    assert arm.of_run == {"optim.base_lr": 1e-4, "crop.scale": [0.5, 1.0]}
    config = arm_config(CONFIG, arm, 1, needs_teacher=True)
    assert config.relation.relations == ("qk", "vv") and not config.relation.softmax
    assert config.optim.base_lr == 1e-4 and config.optim.betas == CONFIG.optim.betas
    assert config.crop.scale == (0.5, 1.0) and config.seed == 1
    assert config.teacher.source == "timm:x" and config.out == Path("out/low_1")


def test_words_are_strings_a_bare_option_is_true_and_sections_nest():
    arm = read("feature,target=tokens,mask_ratio=0.5,reconstruction.weight=0.1")
    options = arm_config(CONFIG, arm, 0, needs_teacher=True).feature
    assert (options.target, options.reconstruction.weight) == ("tokens", 0.1)
    assert read("relation,softmax").own == {"softmax": True}


def test_public_weights_are_an_arm_without_pre_training():
    (arm,) = read_arms(("public=start,student.weights=timm:small,student.num_heads=3",))
    assert (arm.name, arm.method, table_needs_teacher(arm)) == ("public", None, False)
    shared = StudentOptions(name="vit_tiny", embed_dim=24, img_size=32)
    config = replace(CONFIG, student=shared)
    assert student_of(config, arm) == StudentOptions(
        img_size=32, weights="timm:small", num_heads=3
    )  # the shared shape is not that of the weights
    assert run_dir(Path("out"), arm, 1) == Path("out/public_1")
    tuned = tuning_config(config, arm, 0, 1.0)
    assert tuned.optim == config.tune.optim  # with layer decay: what was learnt is to be kept
    assert student_of(config, Entry("scratch", None)) is shared
    deeper = read("deep=masked-pixel,student.depth=3")
    assert arm_config(config, deeper, 0, needs_teacher=False).student == replace(shared, depth=3)


@pytest.mark.parametrize(
    "text",
    ["start", "start,student.weights=x", "public=start", "public=start,optim.base_lr=1",
     "public=start,student.weights=x,mask_ratio=0.5"],
)  # fmt: skip
def test_an_arm_without_pre_training_says_what_it_starts_from(text):
    with pytest.raises(UserError, match="has a name, and says what it starts from: public=start"):
        read_arms((text, "dino"))


def test_a_method_without_a_teacher_gets_none():
    arm = read("dino")
    assert table_needs_teacher(arm) is False and table_needs_teacher(read("relation")) is True
    assert arm_config(CONFIG, arm, 0, needs_teacher=False).teacher == TeacherOptions()


def test_one_s_own_class_is_called_by_its_name_and_keeps_toml():
    arm = read('json:Mine,beta=2.0,words=["a", "b"],kind=big,is_on,most=inf,day=2020-02-03')
    assert (arm.name, arm.method, table_needs_teacher(arm)) == ("Mine", "json:Mine", None)
    assert arm_config(CONFIG, arm, 0, needs_teacher=False).method_options == (
        "beta = 2.0",
        'words = ["a", "b"]',
        'kind = "big"',
        "is_on = true",
        "most = inf",
        "day = 2020-02-03",
    )


def test_baselines_share_their_start():
    untrained, scratch, _ = read_arms(("untrained", "scratch", "dino"))
    assert run_dir(Path(), untrained, 1) == run_dir(Path(), scratch, 1) == Path("untrained_1")
    assert tuned_dir(Path(), scratch, 1) == Path("scratch_1_finetuned")


def test_a_fine_tuning_has_its_seed_its_labels_and_layer_decay_where_something_was_learnt(
    tmp_path,
):
    config = CompareConfig(out=tmp_path)
    tuned, scratch = (
        tuning_config(config, arm, 2, 0.1)
        for arm in (Entry("mine", "dino"), Entry("scratch", None))
    )
    assert tuned.out == tmp_path / "mine_2_finetuned_labels0.1"
    assert (tuned.seed, tuned.data.label_fraction, tuned.data.label_seed) == (2, 0.1, 2)
    assert tuned.optim == config.tune.optim and tuned.optim.layer_decay == 0.85
    assert scratch.optim == replace(tuned.optim, layer_decay=1.0)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("masked-pixl",), "no method 'masked-pixl'. Did you mean 'masked-pixel'?"),
        (("scratsh", "dino"), "Did you mean 'scratch'"),
        (("scratch",), "nothing to compare"),
        (("dino", "dino,out_dim=8"), "Two arms are called 'dino'; name them"),
        (("scratch,x=1", "dino"), "scratch has no options"),
        (("scratch=dino",), "that of a baseline"),
        (("a/b=dino",), "a name has letters"),
        (("no_such_module:Mine",), "no module 'no_such_module'"),
        (("dino,out_dim=8,out-dim=9",), "stated twice"),
    ],
)
def test_arms_that_can_not_be_meant_are_refused(texts, message):
    with pytest.raises(UserError, match=message):
        read_arms(texts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dino,out_dmi=8", "arm 'dino': there is no option 'out_dmi'. Did you mean 'out_dim'"),
        ("x=dino,optim.base_rl=1", "arm 'x': there is no option 'base_rl'. Did you mean"),
        ("dino,out_dim=many", "arm 'dino': out_dim = 'many' is refused"),
        ("dino,train.epochs=9", "arm 'dino': there is no option 'train'"),
    ],
)
def test_options_that_an_arm_does_not_have_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        arm_config(CONFIG, read(text), 0, needs_teacher=False)


def test_a_value_in_a_section_s_place_is_refused():
    (entry,) = read_arms(("feature,reconstruction=1,reconstruction.weight=2",))
    with pytest.raises(UserError, match="reconstruction = 1 is refused"):
        arm_config(CompareConfig(), entry, 0, True)
