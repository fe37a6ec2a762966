"""What a teacher said of each view of each image, on disk: written once, read by any training."""

from limbeck.data.target_store.manifest import ArraySpec, Manifest

__all__ = ["ArraySpec", "Manifest"]
