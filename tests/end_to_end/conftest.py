"""The images and runs of ``tests/recipes``."""

from tests.recipes.conftest import classifier, images, student, teacher, unlabelled

__all__ = ["classifier", "images", "student", "teacher", "unlabelled"]
