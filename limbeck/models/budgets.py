"""A student that is asked for by what it may cost: ``<=5ms,<=6M``. No torch, see
``limbeck.config``.

And the shapes among which it is chosen, by family. Widths divide by 12 or 48 where they can, so
that the heads of usual teachers fit.
"""

import re

from limbeck.errors import UserError

COUNTS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}
FORMS = "'<=5ms' (one image on this machine), '<=6M' (parameters), '<=1.3GMAC', or '<=5ms,<=6M'"

Budget = dict[str, float]
"""The most of "latency_ms", "params" and "macs"; what is not stated may be anything."""

FAMILIES: dict[str, tuple[str, ...]] = {
    "plain ViT": (
        "vit_tiny:embed_dim=96:depth=6:num_heads=3",
        "vit_tiny:embed_dim=96:num_heads=3",
        "vit_tiny:embed_dim=144:num_heads=3",
        "vit_tiny",
        "vit_tiny:embed_dim=240:num_heads=4",
        "vit_tiny:embed_dim=288:num_heads=6",
        "vit_tiny:embed_dim=336:num_heads=6",
        "vit_small",
        "vit_small:embed_dim=480:num_heads=8",
        "vit_small:embed_dim=576:num_heads=9",
        "vit_base",
    ),
    "TinyViT": (
        "tiny_vit_5m:embed_dims=32-64-96-192:depths=1-1-3-1",
        "tiny_vit_5m:embed_dims=32-64-96-192",
        "tiny_vit_5m:embed_dims=64-96-128-256",
        "tiny_vit_5m",
        "tiny_vit_5m:embed_dims=64-128-192-384",
        "tiny_vit_11m",
        "tiny_vit_11m:embed_dims=96-160-320-512",
        "tiny_vit_21m",
    ),
    "Hiera": (
        "hiera_46:embed_dim=24",
        "hiera_46:embed_dim=36",
        "hiera_46",
        "hiera_46:embed_dim=60",
        "hiera_46:embed_dim=72",
        "hiera_46:embed_dim=84",
        "hiera_tiny_224",
        "hiera_small_224",
        "hiera_base_224",
    ),
}
"""Names of shapes, the smaller first: some of ours between the published ones."""

_UNITS = {"ms": ("latency_ms", 1.0), "s": ("latency_ms", 1e3)} | {
    f"{prefix}{word}": (cost, scale)
    for prefix, scale in COUNTS.items()
    for word, cost in (("", "params"), ("MAC", "macs"), ("MACs", "macs"))
    if prefix or word
}


def is_budget(text: str) -> bool:
    """Whether it is meant as one: no model's name begins so."""
    return text.lstrip()[:1] in ("<", "≤", "=", *"0123456789.")


def read_budget(text: str) -> Budget:
    """What a text allows; raises UserError for one that says nothing clear."""
    limits: Budget = {}
    for word in text.split(","):
        found = re.fullmatch(r"\s*(?:<=?|≤)\s*(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z]+)\s*", word)
        cost, scale = _UNITS.get(found[2], ("", 0.0)) if found else ("", 0.0)
        if found is None or not cost or not float(found[1]):
            raise UserError(f"'{word.strip()}' is no budget of a student; write it as {FORMS}.")
        if cost in limits:
            raise UserError(f"'{text}' limits the same twice; leave one of the two out.")
        limits[cost] = float(found[1]) * scale
    return limits
