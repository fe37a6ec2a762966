"""Images: sources, decoding, views that follow from seeds, and the loader."""
