"""Small stores for the tests: what is in a record follows from its key and view."""

from dataclasses import replace

import numpy as np

from limbeck.data.target_store import ArraySpec, Manifest, key_hashes, open_writer

KEYS = [f"photos/{number:03d}.jpg" for number in range(60)]

MANIFEST = Manifest(
    kind="probs",
    params={"k": 3},
    arrays={"codes": ArraySpec((8,), "uint8"), "scales": ArraySpec((2, 3), "float16")},
    teacher={"facts": {"embed_dim": 24}, "precision": "fp32"},
    recipe={"seed": 1, "views": {"scale": (0.2, 1.0)}},
    num_views=2,
    num_parts=4,
    data={"root": "photos", "num_images": len(KEYS)},
    versions={"numpy": "2.4"},
)


def other(**changes):
    return replace(MANIFEST, **changes)


def arrays_of(keys):
    """What the store should say of keys, (n, E, *shape) each."""
    draws = [np.random.default_rng(int(h)) for h in key_hashes(keys)]
    codes = [rng.integers(0, 256, (2, 8), dtype=np.uint8) for rng in draws]
    scales = [rng.random((2, 2, 3)).astype(np.float16) for rng in draws]
    return {
        "codes": np.array(codes, dtype=np.uint8).reshape(-1, 2, 8),
        "scales": np.array(scales, dtype=np.float16).reshape(-1, 2, 2, 3),
    }


def fill(writer, keys, parts=None, skipped=()):
    """Write what is missing of the keys, in all parts or some."""
    for part, places in writer.missing(keys).items():
        if parts is None or part in parts:
            named = [keys[place] for place in places]
            good = [key for key in named if key not in skipped]
            reasons = {key: "it is cut short" for key in named if key in skipped}
            marks = [{"key": key, "view": 0, "pixels": "00"} for key in good[:1]]
            writer.write_part(part, key_hashes(good), arrays_of(good), reasons, marks)


def write_store(address, keys=KEYS, manifest=MANIFEST, **options):
    fill(open_writer(str(address), manifest), keys, **options)
    return address


def assert_holds(reader, keys):
    """Every record of every view is the one of its key."""
    rows = reader.locate(keys)
    assert (rows >= 0).all()
    for view in range(reader.num_views):
        found = reader.read(rows, view)
        for name, expected in arrays_of(keys).items():
            np.testing.assert_array_equal(found[name], expected[:, view])
