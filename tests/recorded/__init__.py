"""What small runs and studies give, kept as data, and the way to make it again."""
