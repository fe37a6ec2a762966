"""Images with a label map each: every layout of them, their views and their batches."""
