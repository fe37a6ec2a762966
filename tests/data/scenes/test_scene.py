import numpy as np
import pytest

from limbeck.data.scenes.scene import RenumberedScenes, SceneSubset
from limbeck.errors import UserError
from tests.data.scenes.test_loader import MemoryScenes


def test_a_subset_is_of_its_source():
    scenes = MemoryScenes(5)
    part = SceneSubset(scenes, [3, 1])
    assert len(part) == 2 and part.key(0) == "scene 3" and part.mask_name(1) == "mask 1"
    assert part.classes == scenes.classes and part.layout == scenes.layout
    assert part.label(0) is None and part.read(0) == b""
    for found, expected in zip(part.read_scene(1), scenes.read_scene(1), strict=True):
        assert np.array_equal(found, expected)
    assert np.array_equal(part.read_mask(0), scenes.read_mask(3))


def test_classes_in_another_order():
    scenes = MemoryScenes(2)
    other = RenumberedScenes(scenes, ("x", "c", "b", "a"), "here", "there")
    assert np.array_equal(other.read_mask(1), 3 - scenes.read_mask(1))
    assert np.array_equal(other.read_scene(1)[1], 3 - scenes.read_mask(1))
    with pytest.raises(UserError, match=r"of here are not those of there, which has no 'c'"):
        RenumberedScenes(scenes, ("a", "b"), "here", "there")
