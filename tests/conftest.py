"""Shared fixtures: seeds, threads, and the real data where it is present."""

import gc
from pathlib import Path

import pytest
import torch

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_finish():
    """What is imported by now stays: every later collection would look through it in vain."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()  # or it is left behind at the end, which some libraries complain of


@pytest.fixture(autouse=True)
def _seeded():
    """Every test starts from the same seed and on one thread, alone or in a crowd."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data; skips the test where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data folder (../shared/data) is not there")
    return SHARED_DATA
