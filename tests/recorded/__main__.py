"""``python -m tests.recorded``: write ``recorded.json`` anew.

Only where behaviour is meant to change: what is in the file is what every later version must do.
"""

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from tests.recorded.runs import FILE, NAMES, Setting, environment, record

DEPTH = 3
"""Below it a value is one line."""


def written(value: Any, depth: int = 0) -> str:
    """JSON that a diff can show: one line for each part of a run's folder."""
    if not isinstance(value, dict) or depth > DEPTH:
        return json.dumps(value)
    inner = ",\n".join(
        f"{' ' * (depth + 1)}{json.dumps(key)}: {written(each, depth + 1)}"
        for key, each in value.items()
    )
    return f"{{\n{inner}\n{' ' * depth}}}"


def main() -> None:
    """Make all runs and write down what they gave."""
    logging.getLogger("limbeck").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(Path(folder).resolve())
        found = {name: record(setting, name) for name in NAMES}
    FILE.write_text(written({"environment": environment(), **found}) + "\n")
    print(f"{FILE}: {len(found)} records, {FILE.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
