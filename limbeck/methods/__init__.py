"""Distillation methods.

A new one is its file here, its options in ``options.py`` (a class and a line), and a line in this
table, which is plain data so that a command line is checked before torch is imported.
"""

METHODS: dict[str, str] = {
    "relation": "limbeck.methods.relation:Relation",
    "masked-pixel": "limbeck.methods.masked_pixel:MaskedPixel",
}
"""Name on the command line -> "module:Class"."""
