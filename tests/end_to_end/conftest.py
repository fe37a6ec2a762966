"""The images and runs of ``tests/recipes``."""

from tests.recipes.conftest import _log_as_before, classifier, images, student, teacher, unlabelled

__all__ = ["_log_as_before", "classifier", "images", "student", "teacher", "unlabelled"]
