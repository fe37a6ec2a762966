"""Images and finished runs that the tests of recipes share; nothing may write into them."""

import pytest

from limbeck.recipes.distill import distill
from limbeck.recipes.finetune import finetune
from tests.recipes.runs import (
    distill_config,
    draw_classes,
    draw_unlabelled,
    finetune_config,
    teacher_config,
)


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """48 images in three class folders."""
    return draw_classes(tmp_path_factory.mktemp("images") / "photos")


@pytest.fixture(scope="session")
def unlabelled(tmp_path_factory):
    """48 images in one folder."""
    return draw_unlabelled(tmp_path_factory.mktemp("unlabelled") / "photos")


@pytest.fixture(scope="session")
def teacher(images, tmp_path_factory):
    """A finished masked-pixel run: three blocks, width 32, four heads."""
    return distill(teacher_config(images, tmp_path_factory.mktemp("teacher") / "run"))


@pytest.fixture(scope="session")
def student(images, teacher, tmp_path_factory):
    """A finished distillation: two blocks, width 24, three heads, four in the last block."""
    return distill(distill_config(images, tmp_path_factory.mktemp("student") / "run", teacher))


@pytest.fixture(scope="session")
def classifier(images, teacher, tmp_path_factory):
    """The teacher above, fine-tuned to tell the three classes apart."""
    return finetune(finetune_config(images, tmp_path_factory.mktemp("classifier") / "run", teacher))
