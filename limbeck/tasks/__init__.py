"""Tasks: what a student is fine-tuned for."""
