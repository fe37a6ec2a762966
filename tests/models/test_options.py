"""Options of students and teachers: strict, and without torch."""

import subprocess
import sys

import pytest

from limbeck.config import from_plain, to_plain
from limbeck.errors import UserError
from limbeck.models.options import StudentOptions, TeacherOptions


def test_round_trip():
    options = StudentOptions(name="vit_small", img_size=96, mlp_ratio=2.0)
    assert from_plain(StudentOptions, to_plain(options), "test") == options
    assert from_plain(TeacherOptions, {}, "test") == TeacherOptions()


@pytest.mark.parametrize("values", [{"depth": 0}, {"embed_dim": -4}, {"mlp_ratio": 0}])
def test_impossible_shapes_are_refused(values):
    with pytest.raises(UserError, match=next(iter(values))):
        from_plain(StudentOptions, values, "test")


def test_mistyped_options_get_the_nearest_one():
    with pytest.raises(UserError, match="Did you mean 'embed_dim'"):
        from_plain(StudentOptions, {"embed_dm": 64}, "test")


def test_options_do_not_import_torch():
    code = "import sys, limbeck.models.options; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
