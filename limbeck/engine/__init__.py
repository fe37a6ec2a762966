"""The loop and what it stands on: optimiser, ranks, checkpoints, log."""
