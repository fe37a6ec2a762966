"""Two processes, as torchrun starts them, make the student that one makes."""

import pytest
from torch.distributed.run import main as torchrun

from limbeck import cli
from limbeck.recipes.train.finetune import finetune
from tests.end_to_end.commands import STUDENT, distill_words, process, train_words
from tests.processes import Started
from tests.recipes.runs import assert_same_student, finetune_config, metrics_of

TORCHRUN = ("--standalone", "--nproc-per-node", "2")


@pytest.mark.slow
def test_torchrun_distils_the_same_student(images, teacher, student, tmp_path):
    words = distill_words(images, tmp_path / "run", teacher)
    done = Started(torchrun, [*TORCHRUN, "-m", "limbeck", *words], folder=tmp_path).end()
    assert done.returncode == 0, done.stderr
    assert_same_student(tmp_path / "run", student)
    assert done.stdout.count("The student is in") == 1
    assert done.stderr.count("36 images, 2 steps per epoch") == 1
    pairs = zip(metrics_of(tmp_path / "run")[0], metrics_of(student)[0], strict=True)
    for two, one in pairs:
        assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)


@pytest.mark.slow
def test_two_processes_fine_tune_and_report_once(images, student, tmp_path):
    words = ["finetune", *train_words(images, tmp_path / "run"), "--student", str(student)]
    done = process(words, cwd=tmp_path, num_processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Held-out images at the end: top1 ") == 1


@pytest.mark.slow
def test_two_processes_fine_tune_the_same_student_with_a_teacher(images, student, tmp_path):
    classifier = finetune(finetune_config(images, tmp_path / "teacher", student))
    words = [
        *("finetune", *train_words(images, tmp_path / "two"), "--student", str(student)),
        *("--head", "tinymim-star", "--teacher", str(classifier), "--teacher.precision", "fp32"),
        *("--mix.mixup-alpha", "0", "--mix.cutmix-alpha", "0", "--drop-path-rate", "0"),
    ]
    done = process(words, cwd=tmp_path, num_processes=2)
    assert done.returncode == 0, done.stderr
    cli.run([*words, "--out", str(tmp_path / "one")])
    assert_same_student(tmp_path / "two", tmp_path / "one")
    pairs = zip(metrics_of(tmp_path / "two")[0], metrics_of(tmp_path / "one")[0], strict=True)
    for two, one in pairs:
        assert two["losses"].keys() == {"total", "class", "logit"}
        assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "own",
    [
        ("moco-v3", "hidden-dim=16", "out-dim=8"),
        ("dino", "hidden-dim=16", "out-dim=16", "num-local-crops=2", "local-img-size=16"),
    ],
    ids=lambda own: own[0],
)
def test_two_processes_train_as_one_where_views_are_compared(own, images, tmp_path):
    method, *values = own
    words = [
        *("distill", *train_words(images, tmp_path / "two"), *STUDENT, "--method", method),
        *(f"--{method}.{value}" for value in values),
    ]
    done = process(words, cwd=tmp_path, num_processes=2)
    assert done.returncode == 0, done.stderr
    cli.run([*words, "--out", str(tmp_path / "one")])
    pairs = zip(metrics_of(tmp_path / "two")[0], metrics_of(tmp_path / "one")[0], strict=True)
    for two, one in pairs:
        assert two["losses"] == pytest.approx(one["losses"], abs=1e-4)
