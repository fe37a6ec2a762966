"""The live teacher: its precision, its image size, what it refuses."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.methods.method import Method
from limbeck.methods.teacher import Teacher
from limbeck.records import Batch, Tap
from tests.fakes import FakeEncoder

CPU = torch.device("cpu")


def test_the_teacher_gets_images_of_its_own_size():
    teacher = Teacher(FakeEncoder(), CPU, "fp32")
    features = teacher(torch.rand(2, 3, 12, 12), None, (Tap("tokens"),))
    assert features.taps[Tap("tokens")].shape == (2, 5, 8)


def test_a_lower_precision_casts_matrices_and_ignores_the_student_s_autocast():
    encoder = FakeEncoder()
    encoder.stem = torch.nn.Linear(8, 8)
    encoder.layer_id = lambda name: 0 if name in ("weight", "stem.weight") else 3
    teacher = Teacher(encoder, CPU, "bf16")
    assert encoder.stem.weight.dtype == torch.bfloat16 and encoder.weight.dtype == torch.float32
    assert encoder.head.weight.dtype == torch.float32  # after the blocks: logits should not tie
    full = Teacher(FakeEncoder(), CPU, "fp32")
    one = torch.rand(2, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert full(one, None, (Tap("queries"),)).taps[Tap("queries")].dtype == torch.float32
    assert teacher(one, None, (Tap("queries"),)).taps[Tap("queries")].dtype == torch.bfloat16


def test_it_answers_with_what_the_batch_shows_it():
    encoder = FakeEncoder()
    teacher = Teacher(encoder, CPU, "fp32")
    shown, ids_keep = torch.rand(2, 3, 8, 8), torch.tensor([[0], [1]])
    batch = Batch(torch.zeros(2, 3, 8, 8), shown, None, ("a", "b"), torch.arange(2))
    batch = Batch(**vars(batch) | {"teacher_ids_keep": ids_keep})
    taps = (Tap("tokens"),)
    expected = encoder(shown, ids_keep, taps).taps[taps[0]]
    assert torch.equal(teacher.answer(batch, taps).taps[taps[0]], expected)


def test_what_it_does_not_offer_is_refused():
    class Asking(Method):
        teacher_taps = (Tap("queries", 5),)

        def forward(self, student, teacher, batch):
            raise NotImplementedError

    with pytest.raises(UserError, match="no block 5"):
        Teacher(FakeEncoder(), CPU).check(Asking())
