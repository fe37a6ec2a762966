"""Verbs, in rooms of what a person does; each room may use those before it.

run < targets < train < look < study < ship. A verb's file imports torch inside its functions, when
they are called: its config and its checks must answer without it.
"""
