"""Teachers' answers on the disk: stored, converted, checked, and read by a run."""
