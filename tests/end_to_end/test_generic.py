"""Generic distillation on the command line: from a masked autoencoder to a classifier."""

import json

import pytest
from safetensors.torch import load_file

import limbeck
from limbeck import cli
from limbeck.engine.log import Log
from limbeck.engine.loop import Interrupted
from tests.end_to_end.commands import STUDENT, train_words
from tests.end_to_end.test_verbs import said_by
from tests.recipes.runs import metrics_of, weights_of

GENERIC = ("--method", "decoder-feature", "--decoder-feature.target-block", "-1")


def words_of(images, out, teacher, *more):
    words = ["distill", *train_words(images, out), *STUDENT, "--teacher", teacher, *GENERIC]
    return [*map(str, words), *more]


def records_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def generic(images, teacher, tmp_path_factory):
    """A finished student of the masked autoencoder's decoder."""
    run = tmp_path_factory.mktemp("generic") / "run"
    cli.run(words_of(images, run, teacher))
    return run


def test_from_a_masked_autoencoder_to_a_classifier(generic, images, tmp_path, capsys):
    steps, _ = metrics_of(generic)
    assert [set(each["losses"]) for each in steps] == [{"total", "decoder", "at_zero"}] * 8
    assert steps[-1]["losses"]["total"] < steps[0]["losses"]["total"]
    assert all(0 < each["losses"]["at_zero"] <= 0.25 for each in steps)
    findings = [each for each in records_of(generic) if "finding" in each]
    assert findings[0]["step"] == 1 and "predicts nothing" in findings[0]["finding"]
    record = json.loads((generic / "student.json").read_text())
    assert record["health"]["plateau_step"] is None and record["health"]["loss_share"] > 0

    own = limbeck.load(generic).model.state_dict()
    assert set(load_file(generic / "student.safetensors")) == set(own)  # the method has vanished
    kept = load_file(generic / "feature_decoder.safetensors")
    assert kept["decoderfeature_pred.fc2.weight"].shape == (16, 16)  # the teacher's decoder

    words = ["finetune", *train_words(images, tmp_path / "classifier"), "--student", generic]
    said, _ = said_by(capsys, *words, "--mix.mixup-alpha", "0", "--mix.cutmix-alpha", "0")
    assert "Held-out images at the end: top1 " in said


def test_a_run_goes_on_with_its_decoder(generic, images, teacher, tmp_path, capsys):
    """With the decoder the loss starts where it ended; with a fresh one it does not."""
    losses = {}
    for name, more in (("on", ()), ("fresh", ("--decoder-feature.fresh-decoder",))):
        words = words_of(images, tmp_path / name, teacher, *more)
        del words[words.index("--student") : words.index("--teacher")]
        said_by(capsys, *words, "--student.weights", generic, "--train.epochs", "0.5")
        losses[name] = metrics_of(tmp_path / name)[0][0]["losses"]["total"]
    last = metrics_of(generic)[0][-1]["losses"]["total"]
    assert losses["on"] == pytest.approx(last, rel=0.1)
    assert losses["fresh"] > 1.5 * last


def test_stopped_and_continued_ends_the_same(images, teacher, tmp_path, monkeypatch):
    more = ("--decoder-feature.encoder-weight", "0.5", "--decoder-feature.drop-path-rate", "0.3")
    more = (*more, "--train.save-every", "3", "--train.precision", "fp16")
    cli.run(words_of(images, tmp_path / "whole", teacher, *more))
    add_step = Log.add_step

    def cut(self, now, **values):
        add_step(self, now, **values)
        if now == 5:
            raise Interrupted("lost", 9)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Log, "add_step", cut)
        cli.run(words_of(images, tmp_path / "part", teacher, *more))
    cli.run(words_of(images, tmp_path / "part", teacher, *more))
    assert weights_of(tmp_path / "part") == weights_of(tmp_path / "whole")
    part, whole = (
        [[each.get(key) for key in ("step", "losses", "finding")] for each in records_of(run)]
        for run in (tmp_path / "part", tmp_path / "whole")
    )
    assert part == whole


def test_doctor_says_what_predicting_nothing_gives(images, teacher, tmp_path, capsys):
    words = words_of(images, tmp_path / "run", teacher)
    said, _ = said_by(capsys, "doctor", *words[1:])
    assert "(predicting nothing gives 0.2" in said and said.endswith("Ready.\n")


def test_a_block_that_is_not_there(images, teacher, tmp_path, capsys):
    words = words_of(images, tmp_path / "run", teacher)
    _, log = said_by(capsys, *words[:-2], code=2)
    assert "The teacher's decoder has 1 blocks" in log and "--decoder-feature.target-block" in log
    assert not (tmp_path / "run").exists()


def test_the_next_student_is_taught_by_the_first_one_s_decoder(generic, images, tmp_path):
    """Which has four blocks, and learns at its own last one what it had learnt itself."""
    words = words_of(images, tmp_path, generic, "--train.epochs", "1")
    cli.run([*words, "--decoder-feature.target-block", "3", "--train.precision", "bf16"])
    losses = metrics_of(tmp_path)[0][-1]["losses"]
    assert losses["total"] > 0 and 0 < losses["at_zero"] <= 0.25
