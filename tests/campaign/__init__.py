"""Hostile inputs by the hundred, run through the command line: ``python -m tests.campaign``."""
