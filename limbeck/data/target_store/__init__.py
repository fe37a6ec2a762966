# ruff: noqa: F401 - imported for others
"""What a teacher said of each view of each image, on disk: written once, read by any training."""

from limbeck.data.target_store.manifest import ArraySpec, Manifest
from limbeck.data.target_store.parts import key_hashes, num_parts_for, part_of
from limbeck.data.target_store.reader import MISSING, SKIPPED, TargetReader
from limbeck.data.target_store.writer import StoreWriter, open_writer
