"""Two processes, as torchrun starts them, make the student that one makes."""

import pytest

from tests.end_to_end.commands import distill_words, process, train_words
from tests.recipes.runs import assert_same_student, metrics_of

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.mark.slow
def test_two_processes_distil_the_same_student(images, teacher, student, tmp_path):
    done = process(
        distill_words(images, tmp_path / "run", teacher), cwd=tmp_path, launcher=TORCHRUN
    )
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
    done = process(words, cwd=tmp_path, launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Held-out images at the end: top1 ") == 1
