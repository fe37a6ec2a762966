"""The contract: subsets, and classes in the order of others."""

import pytest

from limbeck.data.scenes.objects.open import open_objects
from limbeck.data.scenes.objects.options import ObjectOptions
from limbeck.data.scenes.objects.source import ObjectSubset, RenumberedObjects
from limbeck.errors import UserError
from tests.data.scenes.objects import sets


def test_subsets_and_renumbered_classes(tmp_path):
    source = open_objects(str(sets.write_coco(tmp_path)), ObjectOptions(root=str(tmp_path)))
    part = ObjectSubset(source, [2, 0])
    assert [part.key(index) for index in range(2)] == ["c.jpg", "a.jpg"]
    assert part.label(0) is None and part.layout == source.layout
    assert part.fingerprint() == ObjectSubset(source, [0, 2]).fingerprint()
    others = ("yak", "emu", "dog", "cat")
    again = RenumberedObjects(source, others, "here", "there")
    assert sets.held(again) == sets.EXPECTED
    assert again.read_objects(0)[1].classes.tolist() == again.objects(0).classes.tolist()
    with pytest.raises(UserError, match="The classes of here are not those of there"):
        RenumberedObjects(source, ("cat", "dog"), "here", "there")
