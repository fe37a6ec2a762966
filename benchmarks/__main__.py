"""Run one benchmark: ``python -m benchmarks NAME [its arguments]``."""

import sys
from importlib import import_module

BENCHMARKS = {
    "loader": "benchmarks.loader:main",
    "step": "benchmarks.step:main",
}
"""Name and ``module:function``; the function takes the remaining arguments."""


def main(arguments: list[str]) -> None:
    """Run the benchmark that the first argument names."""
    if not arguments or arguments[0] not in BENCHMARKS:
        sys.exit(f"usage: python -m benchmarks NAME ...; names: {', '.join(BENCHMARKS)}")
    module, _, function = BENCHMARKS[arguments[0]].partition(":")
    getattr(import_module(module), function)(arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
