"""Verbs, in rooms of what a person does; each room may use those before it.

run < targets < train < look < study < ship.
"""
