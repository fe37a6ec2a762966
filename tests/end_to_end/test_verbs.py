"""Every verb on the command line, one after the other: from images to a verdict."""

import json
import shutil

import pytest
from safetensors.torch import load_file

import limbeck
from limbeck.cli import main
from tests.end_to_end.commands import data_words, distill_words, train_words
from tests.recipes.runs import draw_unlabelled, snapshot, weights_of


def said_by(capsys, *words, code=0):
    """Standard output and error of a command line that exits with ``code``."""
    try:
        main(list(map(str, words)))
        exit_code = 0
    except SystemExit as error:
        exit_code = error.code
    shown = capsys.readouterr()
    assert exit_code == code, shown.err
    assert "Traceback" not in shown.err
    return shown.out, shown.err


def test_from_images_to_a_verdict(images, teacher, tmp_path, capsys):
    run, classifier, out = tmp_path / "run", tmp_path / "classifier", tmp_path / "out"
    words = distill_words(images, run, teacher)

    said, _ = said_by(capsys, "doctor", *words[1:])
    assert said.endswith("Ready.\n")
    assert not run.exists()

    said, log = said_by(capsys, *words)
    assert f"limbeck evaluate --student {run}" in said
    assert "36 images, 2 steps per epoch, 8 steps in all, peak learning rate 0.000625" in log
    assert "distill  step 8/8 (100 %)" in log
    assert "No image had to be skipped." in log

    before = snapshot(run)
    _, log = said_by(capsys, *words)
    assert "is finished already; nothing to do." in log
    assert snapshot(run) == before

    said, _ = said_by(capsys, "inspect", run)
    assert "finished student" in said

    words = ["finetune", *train_words(images, classifier), "--student", run]
    said, _ = said_by(capsys, *words, "--mix.mixup-alpha", "0", "--mix.cutmix-alpha", "0")
    assert "Held-out images at the end: top1 " in said
    assert limbeck.load(classifier).facts.num_classes == 3

    words = ["evaluate", *data_words(images), "--student", run, "--teacher", teacher]
    said, _ = said_by(capsys, *words, "--out", out, "--num-labels", "1", "--no-measure-speed")
    assert "| student " in said
    assert "Verdict (linear_top1): " in said
    assert json.loads((out / "scores.json").read_text())["deciding"] == "linear_top1"


def test_a_look_into_networks(images, student, teacher, tmp_path, capsys):
    words = ["analyze", student, teacher, *data_words(images), "--reference", teacher]
    words += ["--names", "small", "big", "--out", tmp_path, "--num-images", "8"]
    said, _ = said_by(capsys, *words, "--parts", "similarity", "attention", "--device", "cpu")
    assert "small resembles big " in said and "attention_entropy.svg" in said
    found = json.loads((tmp_path / "analysis.json").read_text())
    assert found["images"]["num_images"] == 8 and set(found["parts"]["attention"]) == {
        "small",
        "big",
    }
    _, log = said_by(capsys, *words, "--seed", "1", code=2)
    assert "holds another analysis" in log


def test_python_and_the_command_line_make_the_same(images, teacher, student, tmp_path, capsys):
    said_by(capsys, *distill_words(images, tmp_path / "run", teacher))
    assert weights_of(tmp_path / "run") == weights_of(student)


def test_a_preset_and_what_differs(images, teacher, tmp_path, capsys):
    preset = tmp_path / "mine.toml"
    preset.write_text("seed = 7\n[train]\nepochs = 99\nlog_every = 3\n")
    said_by(capsys, *distill_words(images, tmp_path / "run", teacher), "--preset", preset)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["seed"] == 7
    assert config["train"]["epochs"] == 4
    assert config["train"]["log_every"] == 1
    assert config["resolved"]["total_steps"] == 8


def test_another_run_in_the_folder(images, teacher, student, tmp_path, capsys):
    run = shutil.copytree(student, tmp_path / "run")
    before = snapshot(run)
    words = [*distill_words(images, run, teacher), "--seed", "1"]
    _, log = said_by(capsys, *words, code=2)
    assert "limbeck: " in log
    assert "holds another run: seed is 0 there and 1 here" in log
    assert "--overwrite" in log
    assert snapshot(run) == before
    said_by(capsys, *words, "--overwrite")
    assert weights_of(run) != weights_of(student)


def test_a_failed_run_exits_with_1(teacher, tmp_path, capsys):
    images = draw_unlabelled(tmp_path / "images")
    for index in range(8):
        (images / f"{index:03d}.png").write_bytes(b"no image")
    _, log = said_by(capsys, *distill_words(images, tmp_path / "run", teacher), code=1)
    assert "images can't be used, more than --data.max-bad-ratio 0.01 allows" in log
    assert (tmp_path / "run" / "skipped.jsonl").exists()


def test_doctor_exits_with_1_where_there_are_problems(images, tmp_path, capsys):
    words = ["--train.global-batch-size", "64", "--train.accumulate-steps", "32"]
    said, _ = said_by(capsys, "doctor", "--data", images, *words, code=1)
    assert "PROBLEM     47 training images do not fill a batch of 64; add" in said


def method_words(images, run, method, *words):
    """As ``distill_words``, by another method; without a teacher."""
    every = distill_words(images, run, "TEACHER")
    return [*every[: every.index("--teacher")], "--method", method, *words]


@pytest.mark.parametrize(
    "words",
    [
        ["--attention-map.mask-ratio", "0.5"],
        [
            *("--attention-map.decoupled", "--attention-map.reconstruction.before-block", "1"),
            *("--train.precision", "bf16"),
        ],
        ["--attention-map.target", "tokens", "--attention-map.block-pairs", "0", "1", "-1", "-1"],
        [
            *("--attention-map.masking", "mask-token", "--attention-map.target", "maps"),
            *("--attention-map.regression.mask-patch-size", "8"),
        ],
    ],
    ids=["d-mae", "d2-mae", "tokens", "mask-token"],
)
def test_attention_maps(unlabelled, teacher, tmp_path, capsys, words):
    run = tmp_path / "run"
    words = method_words(unlabelled, run, "attention-map", "--teacher", teacher, *words)
    said_by(capsys, *words)
    student = limbeck.load(run)
    assert student.facts.num_heads == (3, 3)
    names = set(load_file(run / "student.safetensors"))
    assert names == set(student.model.state_dict())  # nothing of the method is left


def test_simmim_needs_no_teacher(unlabelled, tmp_path, capsys):
    run = tmp_path / "run"
    said_by(capsys, *method_words(unlabelled, run, "simmim", "--simmim.mask-patch-size", "8"))
    student = limbeck.load(run)
    assert set(load_file(run / "student.safetensors")) == set(student.model.state_dict())


@pytest.mark.parametrize("precision", ["bf16"])
def test_masked_pixels_need_no_teacher(unlabelled, tmp_path, capsys, precision):
    words = distill_words(unlabelled, tmp_path / "run", tmp_path)
    words = words[: words.index("--teacher")]
    words += ["--method", "masked-pixel", "--masked-pixel.mask-ratio", "0.5"]
    said_by(capsys, *words, "--train.precision", precision)
    assert limbeck.load(tmp_path / "run").facts.num_heads == (3, 3)

    words = ["convert", tmp_path / "run", tmp_path / "mae.pth", "--layout", "mae-full"]
    said, _ = said_by(capsys, *words)
    assert said.startswith(f"Wrote {tmp_path / 'mae.pth'}: the encoder and decoder in MAE's layout")
    _, log = said_by(capsys, *words, code=2)
    assert "mae.pth exists; choose another name, or replace it with --overwrite." in log
