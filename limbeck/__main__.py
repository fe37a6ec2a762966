"""``python -m limbeck``, for torchrun."""

from limbeck.cli import main

main()
