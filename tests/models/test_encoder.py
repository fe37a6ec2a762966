"""The encoder's facts and the check of wanted taps."""

from dataclasses import replace

import pytest

from limbeck.errors import UserError
from limbeck.models.encoder import check_taps
from limbeck.records import Tap
from tests.fakes import FakeEncoder


def test_the_identity_tells_weights_heads_and_architecture_but_not_the_image_size():
    facts = FakeEncoder().facts

    def of(**kwargs):
        return replace(facts, architecture={"kind": "fake", "kwargs": kwargs})

    assert of(img_size=32, qk_norm=True).identity == of(img_size=64, qk_norm=True).identity
    others = [
        of(),
        of(qk_norm=True),
        replace(of(), num_heads=(2, 4)),
        replace(of(), origin={"weight_hash": "1" * 64}),
        replace(of(), origin={"source": "fake"}),
    ]
    identities = [other.identity for other in others]
    assert all(one not in identities[:place] for place, one in enumerate(identities))
    assert identities[0]["weights"] == "0" * 64 and identities[-1]["weights"] is None


def test_taps_after_all_blocks_need_none():
    class Blockless(FakeEncoder):
        def __init__(self):
            super().__init__()
            self._facts |= {"depth": 0, "num_heads": ()}

    check_taps(Blockless(), (Tap("output"), Tap("logits")), "teacher")
    with pytest.raises(UserError, match="The teacher has 0 blocks"):
        check_taps(Blockless(), (Tap("tokens"),), "teacher")


def test_what_a_tap_asks_of_a_block_is_checked():
    encoder = FakeEncoder()
    check_taps(encoder, (Tap("queries", -2, num_heads=2), Tap("tokens", 1)), "student")
    with pytest.raises(UserError, match="needs 4 heads in block 1 of the student, which has 2"):
        check_taps(encoder, (Tap("queries", 1, num_heads=4),), "student")
    with pytest.raises(UserError, match="The student has 2 blocks .* there is no block 2"):
        check_taps(encoder, (Tap("tokens", 2),), "student")
    with pytest.raises(UserError, match="needs 'dist_logits' of the student, which offers only"):
        check_taps(encoder, (Tap("dist_logits"),), "student")
