"""The examples run as they are, and as a user would run them."""

from pathlib import Path
from runpy import run_path

import pytest

from tests.processes import Started

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda file: file.stem)
def test_example_runs(example):
    done = Started(run_path, str(example), None, "__main__", folder=example.parent).end()
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
