"""Shared fixtures: seeds, threads, and photos."""

import gc
import logging
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from limbeck.engine import machine


def pytest_collection_finish():
    """What is imported by now stays: every later collection would look through it in vain."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()  # or it is left behind at the end, which some libraries complain of


@pytest.fixture(scope="session", autouse=True)
def _any_machine():
    """On every machine ``precision auto`` is fp32 in the tests: bf16 is slow without instructions.

    Of the test's own process; others that it starts measure for themselves.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "product_seconds", lambda dtype: (1.0, 1.0))
        yield


@pytest.fixture(autouse=True)
def _seeded():
    """Every test starts from the same seed and on one thread, alone or in a crowd."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def real_photos() -> list[Path]:
    """Two JPEG photos of 640 x 427 pixels, which scikit-learn brings."""
    folder = Path(str(files("sklearn") / "datasets" / "images"))
    return [folder / "china.jpg", folder / "flower.jpg"]


@pytest.fixture(autouse=True)
def _own_log():
    """The command line's log goes to the stream of its own test, not of a fixture or one before."""
    logger = logging.getLogger("limbeck")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    yield
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
