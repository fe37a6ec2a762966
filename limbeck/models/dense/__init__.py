"""Encoders that answer with maps: necks and heads on a vision Transformer."""
