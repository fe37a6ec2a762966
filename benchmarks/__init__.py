"""Speed and memory against plain reference versions; each prints its ratio."""
