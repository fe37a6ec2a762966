"""Configs: defaults <- preset <- command line, strict keys and types, JSON there and back."""

import contextlib
import dataclasses
import json
import sys

import pytest

from limbeck.cli import parse
from limbeck.config import (
    PRESETS_DIR,
    as_flags,
    from_plain,
    has_own_module,
    import_own,
    preset_names,
    preset_summaries,
    read_preset,
    to_plain,
)
from limbeck.data.views import view_seed
from limbeck.errors import UserError
from limbeck.recipes.look.options import EvaluateConfig
from limbeck.recipes.run.options import DistillConfig, FinetuneConfig
from limbeck.verbs import VERBS, config_class

CONFIGS = {verb: config_class(verb) for verb in VERBS} | {
    f"{verb} {task}": config_class(verb, task) for verb in VERBS for task in VERBS[verb].tasks
}


def changed(value):
    """Another value of the same type that every option accepts, or None where unknown."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return value / 2
    if isinstance(value, int) and value > 1:
        return value + 1
    return None


def test_command_line_over_preset_over_default(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("seed = 5\n[train]\nepochs = 7\nglobal_batch_size = 32\n")
    words = ["--preset", str(file), "--train.epochs", "9"]
    config = parse("distill", DistillConfig, words)
    assert config.seed == 5
    assert config.train.epochs == 9
    assert config.train.global_batch_size == 32
    assert config.train.save_every == DistillConfig().train.save_every


def test_a_preset_changes_only_what_it_lists():
    config = from_plain(
        FinetuneConfig, read_preset("photos_finetune", "finetune"), "photos_finetune"
    )
    default = FinetuneConfig()
    assert config.mix.mixup_alpha == 0.2
    assert config.optim.layer_decay == 0.75
    # A section that a verb sets for itself keeps what the preset does not list.
    assert config.optim.betas == default.optim.betas
    assert config.optim.no_decay_names == default.optim.no_decay_names
    assert config.views == default.views


def test_a_partial_section_keeps_the_verb_s_own_defaults(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[views]\nflip_prob = 0.0\n[data]\nnum_workers = 0\n")
    words = [f"--preset={file}"]
    config = parse("finetune", FinetuneConfig, words)
    default = FinetuneConfig()
    assert config.views == dataclasses.replace(default.views, flip_prob=0.0)
    assert config.data == dataclasses.replace(default.data, num_workers=0)


@pytest.mark.parametrize("verb", CONFIGS)
def test_json_round_trip_of_the_defaults(verb):
    config = CONFIGS[verb]()
    plain = json.loads(json.dumps(to_plain(config)))
    assert from_plain(CONFIGS[verb], plain, "saved") == config


@pytest.mark.parametrize("verb", CONFIGS)
def test_json_round_trip_of_changed_values(verb):
    config = CONFIGS[verb]()
    num_changed = 0
    for section in dataclasses.fields(config):
        value = getattr(config, section.name)
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                if (other := changed(getattr(value, field.name))) is not None:
                    # One at a time: some have no effect beside others, and are refused.
                    with contextlib.suppress(UserError):
                        value = dataclasses.replace(value, **{field.name: other})
                        num_changed += 1
            config = dataclasses.replace(config, **{section.name: value})
        elif (other := changed(value)) is not None:
            num_changed += 1
            config = dataclasses.replace(config, **{section.name: other})
    assert num_changed or verb in ("inspect", "presets", "report")  # words alone
    plain = json.loads(json.dumps(to_plain(config)))
    assert from_plain(CONFIGS[verb], plain, "saved") == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sed": 1}, "mine: there is no option 'sed'. Did you mean 'seed'?"),
        (
            {"train": {"epoch": 1}},
            "mine: there is no option 'train.epoch'. Did you mean 'epochs'?",
        ),
        ({"train": {"zzz": 1}}, "mine: there is no option 'train.zzz'."),
    ],
)
def test_an_unknown_key_names_the_nearest(values, message):
    with pytest.raises(UserError) as caught:
        from_plain(DistillConfig, values, "mine")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"train": {"epochs": "many"}}, "epochs = 'many' is refused: input should be a valid"),
        ({"train": {"epochs": 0}}, "epochs = 0 is refused: input should be greater than 0"),
        ({"train": {"precision": "fp8"}}, "precision = 'fp8' is refused: input should be 'auto'"),
        ({"optim": {"base_lr": float("nan")}}, "base_lr = nan is refused"),
        ({"crop": {"scale": [0.5, 2.0]}}, "a crop can't have more than the whole area"),
        ({"train": 3}, "train = 3 is refused"),
    ],
)
def test_a_wrong_value_is_refused_in_one_sentence(values, words):
    with pytest.raises(UserError) as caught:
        from_plain(DistillConfig, values, "mine")
    message = str(caught.value)
    assert words in message
    assert message.startswith("mine: ")
    assert "\n" not in message


def test_python_gets_the_same_sentences():
    with pytest.raises(UserError, match="seed = 'a' is refused"):
        DistillConfig(seed="a")
    with pytest.raises(UserError, match="sed"):
        DistillConfig(sed=1)


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DistillConfig().seed = 1


def test_a_preset_unsets_an_option(tmp_path):
    file = tmp_path / "plain.toml"
    file.write_text('img_size = "None"\n[optim]\nclip_grad = "None"\n')
    values = read_preset(str(file), "detect")
    assert values == {"img_size": None, "optim": {"clip_grad": None}}


def test_presets_of_a_verb():
    assert "tinymim_vit_tiny" in preset_names("distill")
    assert "photos_finetune" in preset_names("finetune")
    assert preset_names("inspect") == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("photos_vit_tny", "There is no preset 'photos_vit_tny' for 'limbeck distill'. "
         "Did you mean 'photos_vit_tiny'? 'limbeck presets distill' lists them"),
        ("photos_finetune", "The preset 'photos_finetune' is for 'limbeck finetune', "
         "not 'limbeck distill'."),
        ("no/such.toml", "There is no preset 'no/such.toml'"),
    ],
)  # fmt: skip
def test_a_preset_that_is_none(name, words):
    with pytest.raises(UserError) as caught:
        read_preset(name, "distill")
    assert words in str(caught.value)


@pytest.mark.parametrize("summary", ["3", '""', '"two\\nlines"', f'"{"long" * 20}"'])
def test_a_preset_s_summary_is_a_line(tmp_path, summary):
    file = tmp_path / "mine.toml"
    file.write_text(f"summary = {summary}\nseed = 5\n")
    with pytest.raises(UserError, match="summary"):
        read_preset(str(file), "distill")
    file.write_text('summary = "mine, of mornings"\nseed = 5\n')
    assert read_preset(str(file), "distill") == {"seed": 5}


def test_every_shipped_preset_has_a_summary():
    told = {name for verb in VERBS for name in preset_summaries(verb)}
    assert told == {file.stem for file in PRESETS_DIR.glob("*.toml")}


@pytest.mark.parametrize("content", [b"seed = ", b"seed = 1\nseed = 2", b"\xff\xfe\x00"])
def test_a_preset_that_is_no_toml(tmp_path, content):
    file = tmp_path / "mine.toml"
    file.write_bytes(content)
    with pytest.raises(UserError, match="as TOML"):
        read_preset(str(file), "distill")


def test_a_user_s_own_module_is_found_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "own_thing_of_config.py").write_text("class Thing:\n    pass\n")
    assert has_own_module("own_thing_of_config:Thing")
    assert import_own("own_thing_of_config:Thing", "method").__name__ == "Thing"
    with pytest.raises(UserError, match=r"the module has no 'Thng'. Did you mean 'Thing'\?"):
        import_own("own_thing_of_config:Thng", "method")


@pytest.mark.parametrize("address", ["no_such_module:A", "no.such.module:A", ":A", "a b:C"])
def test_a_module_that_is_not_there(address):
    assert not has_own_module(address)
    with pytest.raises(UserError, match="there is no module"):
        import_own(address, "method")


FINETUNE = {
    "train.global_batch_size 9 does not divide by train.accumulate_steps 2.":
        "--train.global-batch-size 9 does not divide by --train.accumulate-steps 2.",
    "keep_head and head_index exclude each other; leave one of them out.":
        "--keep-head and --head-index exclude each other; leave one of them out.",
    "TrainOptions: epochs = -1.0 is refused: too few.": "--train.epochs -1.0 is refused: too few.",
    "OptimOptions: betas.1 = 'x' is refused: no number.":
        "--optim.betas 'x' is refused: no number.",
    "head has no effect without a head.": "--head has no effect without a head.",
    # Of one's own section where two have the name; of the one that the sentence names.
    "optim.head_lr_scale has no effect without layer_decay; set one.":
        "--optim.head-lr-scale has no effect without --optim.layer-decay; set one.",
    # Not what only looks like an option: files, keys of JSON, quoted words, what presets say.
    "Can't read runs/train.epochs or data.root.json or 'data.root'.": None,
    "There is no file or folder optim.pth: a/keep_head does not exist.": None,
    "preset mine: there is no option 'trian'; train.epochs is one.": None,
    "num_workers(): no such thing.": None,
    "'vit_tiny:img_size=160:num_heads=3' says it.": None,
    "The method logit needs a teacher.": None,
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), FINETUNE.items())
def test_errors_are_spelled_as_the_command_line_is(text, expected):
    assert as_flags(text, FinetuneConfig) == (expected or text)


def test_of_sections_of_one_name_the_words_decide():
    kind = config_class("compare")
    text = "TrainOptions: epochs = -1.0 is refused: too few."
    assert as_flags(text, kind).startswith("--train.epochs -1.0")
    assert as_flags(text, kind, ["--tune.train.epochs", "-1"]).startswith(
        "--tune.train.epochs -1.0"
    )
    told = "tune.train.epochs 1e-09 of 2 steps each is less than one step"
    assert as_flags(told, kind).startswith("--tune.train.epochs 1e-09 of")


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (DistillConfig, {"seed": -1}),
        (DistillConfig, {"seed": 2**63}),
        (DistillConfig, {"data": {"label_seed": -1}}),
        (DistillConfig, {"data": {"num_workers": 10**6}}),
        (DistillConfig, {"train": {"epochs": 1e300}}),
        (DistillConfig, {"train": {"global_batch_size": 10**12}}),
        (DistillConfig, {"train": {"save_every": 10**400}}),
        (DistillConfig, {"optim": {"betas": (0.9, 1.0)}}),
        (DistillConfig, {"optim": {"weight_decay": 1e300}}),
        (DistillConfig, {"student": {"img_size": 10**5}}),
        (DistillConfig, {"student": {"name": "vit_tiny:depth=1000000"}}),
        (DistillConfig, {"relation": {"teacher_block": 10**30}}),
        (DistillConfig, {"out": "runs\0mine"}),
        (DistillConfig, {"data": {"root": "a\0b"}}),
        (EvaluateConfig, {"student": ("good", "bad\0")}),
    ],
)
def test_what_can_not_be_meant_is_refused_in_a_sentence(kind, values):
    with pytest.raises(UserError, match=r"(?s)^[^\n]*\.$"):
        from_plain(kind, values, "the command line")


def test_the_largest_seed_draws(tmp_path):
    seed = from_plain(DistillConfig, {"seed": 2**63 - 1}, "the command line").seed
    assert view_seed(seed, 0, "a.png") != view_seed(0, 0, "a.png")
