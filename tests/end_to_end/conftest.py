"""The images and runs of ``tests/recipes``."""

from tests.recipes.conftest import (
    classifier,
    images,
    not_rendered,
    scenes,
    segmenter,
    student,
    teacher,
    unlabelled,
)

__all__ = [
    "classifier",
    "images",
    "not_rendered",
    "scenes",
    "segmenter",
    "student",
    "teacher",
    "unlabelled",
]
