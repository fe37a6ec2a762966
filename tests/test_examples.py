"""The examples run as they are, and as a user would run them."""

import re
from pathlib import Path
from runpy import run_path

import pytest

from limbeck.cli import main
from tests.processes import Started

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda file: file.stem)
def test_example_runs(example):
    done = Started(run_path, str(example), None, "__main__", folder=example.parent).end()
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    if example.stem == "own_study":
        assert re.search(r"\| relation \| [\d.]+ ± [\d.]+ \| [\d.]+ ± ", done.stdout)


def test_a_verb_of_ones_own_is_run_by_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES[0].parent)
    from own_teacher import draw_images

    words = ["--data", str(draw_images(tmp_path / "discs", 32)), "--out", str(tmp_path / "run")]
    shape = "vit_tiny:img_size=32:patch_size=8:embed_dim=16:depth=1:num_heads=2"
    main(["own_training:regress", *words, "--student", shape, "--train.epochs", "1"])
    assert capsys.readouterr().out == f"{tmp_path / 'run'}\n"
    main(["own_training:regress", "--help"])
    assert "--train.epochs" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["own_training:regress", "--data", str(tmp_path / "nowhere")])
    assert "limbeck: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["own_training:Regression"])
    assert "no function of one options class" in capsys.readouterr().err
    (tmp_path / "odd_verb.py").write_text(
        "from __future__ import annotations\ndef verb(config: Missing): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit):
        main(["odd_verb:verb"])
    assert "annotations can't be read: NameError: name 'Missing'" in capsys.readouterr().err
