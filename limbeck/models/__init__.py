"""Encoders: any timm vision Transformer behind one contract, students, weights, finished files."""
