"""The distiller: the teacher's precision, size and grid; what each side sees."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.methods.distiller import Distiller
from limbeck.methods.method import Method
from limbeck.methods.teacher import Teacher
from limbeck.records import Batch, Losses, Tap
from limbeck.tasks.classification import Classification
from tests.fakes import FakeEncoder

CPU = torch.device("cpu")


class Recorder(Method):
    """Keeps what it was handed."""

    student_taps = (Tap("queries"),)
    teacher_taps = (Tap("tokens"),)

    def forward(self, student, teacher, batch):
        self.seen = (student, teacher, batch)
        return Losses(student.taps[self.student_taps[0]].sum())


def batch(size=8):
    return Batch(
        torch.rand(2, 3, size, size),
        torch.rand(2, 3, size, size),
        None,
        ("a", "b"),
        torch.arange(2),
    )


def test_each_side_sees_its_own_view():
    student, teacher = FakeEncoder(), FakeEncoder(seed=1)
    distiller = Distiller(student, Recorder(), Teacher(teacher, CPU, "fp32"))
    one = batch()
    distiller(one)
    seen_student, seen_teacher, _ = distiller.method.seen
    expected = student(one.images, None, Recorder.student_taps)
    torch.testing.assert_close(seen_student.taps, expected.taps)
    torch.testing.assert_close(
        seen_teacher.taps, teacher(one.teacher_images, None, Recorder.teacher_taps).taps
    )
    assert not seen_teacher.taps[Tap("tokens")].requires_grad


def test_patch_grids_that_differ_are_refused():
    class Wide(FakeEncoder):
        def __init__(self):
            super().__init__()
            self._facts["img_size"] = (16, 16)

    with pytest.raises(UserError, match="grid"):
        Distiller(FakeEncoder(), Recorder(), Teacher(Wide(), CPU))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_method_beside_a_task_leaves_a_share_to_both(share):
    student, method = FakeEncoder(), Recorder()
    method.share = share
    with pytest.raises(UserError, match="silences the labels or the teacher; .* between 0 and 1"):
        Distiller(student, method, Teacher(FakeEncoder(), CPU), Classification(student))


def test_the_student_is_saved_once():
    student, method = FakeEncoder(), Recorder()
    method.share = 0.5
    distiller = Distiller(student, method, None, Classification(student))
    assert set(distiller.state_dict()) == {f"student.{name}" for name in student.state_dict()}


def test_a_method_without_teacher_gets_none():
    distiller = Distiller(FakeEncoder(), Recorder(), None)
    distiller(batch())
    assert distiller.method.seen[1] is None
