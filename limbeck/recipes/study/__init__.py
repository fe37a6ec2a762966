"""Many runs, judged: compare, two-stage, search, demo."""
