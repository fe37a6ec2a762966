from limbeck.data.scenes.ade20k import find_ade20k
from limbeck.data.scenes.layout import Place
from limbeck.data.scenes.options import SceneOptions
from tests.data.scenes import sets


def test_its_own_names_are_recognised(tmp_path):
    sets.ade20k(tmp_path / "ade")
    found = find_ade20k(Place(tmp_path / "ade", SceneOptions(), "validation"))
    assert found.layout.startswith("ADE20K") and not found.has_background
    assert found.table.values == (1, 2, 3) and found.splits == ("train", "validation")
    assert found.images.key(0) == "images/validation/ADE_val_00000000.jpg"


def test_other_names_where_it_is_asked_for(tmp_path):
    root = sets.parallel(tmp_path)
    assert find_ade20k(Place(root, SceneOptions(), "train")) is None
    assert find_ade20k(Place(root, SceneOptions(layout="ade20k"), "train")) is not None
