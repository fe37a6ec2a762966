"""``limbeck presets``: the list by verb, one preset as a file, and what is no preset."""

import tomllib

import pytest

from limbeck.cli import main
from limbeck.config import PRESETS_DIR, read_preset
from limbeck.errors import UserError
from limbeck.recipes.look.presets import PresetsConfig, presets, report

NAMES = sorted(file.stem for file in PRESETS_DIR.glob("*.toml"))


def told(name=""):
    return report(presets(PresetsConfig(name=name)))


def test_every_preset_is_listed_once_in_a_line_of_a_terminal(capsys):
    main(["presets"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sorted(line.split()[0] for line in lines if line.startswith("  ")) == NAMES
    assert all(len(line.split()) > 1 for line in lines if line.startswith("  "))
    assert "limbeck distill, store-targets, doctor, search --preset NAME:" in lines
    assert "limbeck segment, doctor segment --preset NAME:" in lines


@pytest.mark.parametrize("verb", ["distill", "doctor"])
def test_those_of_a_verb(verb):
    assert "  photos_vit_tiny " in told(verb) and "photos_finetune" not in told(verb)


@pytest.mark.parametrize("name", NAMES)
def test_one_is_shown_as_a_file_in_lines_of_a_terminal(name):
    text = told(name)
    assert tomllib.loads(text) == tomllib.loads((PRESETS_DIR / f"{name}.toml").read_text())
    comments = [line for line in text.splitlines() if line.startswith("# ")]
    assert max(len(line) for line in comments if not line.startswith("#  ")) <= 80


def test_what_is_shown_is_a_preset_of_one_s_own(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text(told("photos_vit_tiny"))
    assert read_preset(str(mine), "distill") == read_preset("photos_vit_tiny", "distill")
    assert told(str(mine)) == told("photos_vit_tiny")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("photos_vit_tny", "no preset or verb 'photos_vit_tny'. Did you mean 'photos_vit_tiny'?"),
        ("deit", "DeiT's distillation is limbeck finetune"),
        (
            "evaluate",
            "'limbeck evaluate' has no presets; distill, finetune, segment, detect, compare",
        ),
    ],
)
def test_what_is_no_preset(name, message):
    with pytest.raises(UserError, match="preset") as caught:
        told(name)
    assert message in str(caught.value)
