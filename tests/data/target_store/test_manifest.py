"""What a store says of itself."""

import json
from dataclasses import asdict

from limbeck.data.target_store import ArraySpec, Manifest


def test_it_is_plain_data():
    manifest = Manifest(
        "probs", {"k": 3}, {"records": ArraySpec((8,), "uint8")}, {}, {}, 2, 4, {}, {"numpy": "2"}
    )
    assert json.loads(json.dumps(asdict(manifest)))["arrays"]["records"][0] == [8]
