"""What stage two is for: a file for each task."""
