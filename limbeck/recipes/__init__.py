"""Recipes: the only place where everything meets; one file per verb of the command line."""
