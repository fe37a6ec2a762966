"""Real processes that are killed or asked to stop, and go on as if nothing had happened."""

import signal

import pytest

from limbeck.cli import main
from tests.end_to_end.commands import distill_words, process
from tests.recipes.runs import metrics_of, weights_of

OWN = """
import os
from pathlib import Path

from limbeck.methods.relation import Relation

CALLS = []


class Stopped(Relation):
    def forward(self, student, teacher, batch):
        CALLS.append(batch.keys)
        if len(CALLS) == 8 and Path("armed").exists():  # the first two look for gradients
            os.kill(os.getpid(), int(Path("armed").read_text()))
        return super().forward(student, teacher, batch)
"""


@pytest.fixture
def words(images, teacher, tmp_path, monkeypatch):
    """A command line whose sixth step sends a signal to itself, where the folder is armed."""
    (tmp_path / "own_stopped_method.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)

    def build(out):
        words = distill_words(images, tmp_path / out, teacher)[:-2]
        return [
            *words,
            *("--train.probe-every", "1"),
            *("--method", "own_stopped_method:Stopped", "--train.save-every", "4"),
            *("--method-options", "drop_path_rate=0.3", "color_jitter=[0.4, 0.4, 0.4]"),
        ]

    return build


@pytest.mark.slow
@pytest.mark.parametrize(("number", "saved"), [(signal.SIGKILL, 4), (signal.SIGTERM, 6)])
def test_a_stopped_run_ends_bit_by_bit_the_same(words, tmp_path, capsys, number, saved):
    run, whole = tmp_path / "stopped", tmp_path / "whole"
    (tmp_path / "armed").write_text(str(int(number)))
    stopped = process(words("stopped"), cwd=tmp_path)
    assert "Traceback" not in stopped.stderr
    if number == signal.SIGKILL:
        assert stopped.returncode == -signal.SIGKILL
    else:
        assert stopped.returncode == 128 + number
        assert "limbeck: Stopped by SIGTERM after step 6, which is saved" in stopped.stderr
    assert (run / "checkpoint.pt").exists()
    assert not (run / "student.safetensors").exists()

    (tmp_path / "armed").unlink()
    main(words("whole"))
    capsys.readouterr()
    main(words("stopped"))
    assert f"step {saved + 1}/8" in capsys.readouterr().err
    assert weights_of(run) == weights_of(whole)
    of_run, of_whole = (
        [(record["step"], record["losses"]) for record in metrics_of(each)[0]]
        for each in (run, whole)
    )
    assert of_run == of_whole
    assert len(of_run) == 8
