from limbeck.data.scenes.cityscapes import find_cityscapes
from limbeck.data.scenes.layout import Place
from limbeck.data.scenes.options import SceneOptions
from limbeck.data.scenes.published import CITYSCAPES_IDS, CITYSCAPES_TRAIN_IDS
from tests.data.scenes import sets


def place(root):
    return Place(root, SceneOptions(), "train")


def test_train_ids_are_taken_where_all_images_have_them(tmp_path):
    assert find_cityscapes(place(tmp_path)) is None
    sets.cityscapes_train_ids(tmp_path / "set")
    found = find_cityscapes(place(tmp_path / "set"))
    assert found.table is CITYSCAPES_TRAIN_IDS and found.is_certain
    assert found.masks.name(0).endswith("ulm_a1_000019_gtFine_labelTrainIds.png")
    (tmp_path / "set" / found.masks.name(0)).unlink()
    found = find_cityscapes(place(tmp_path / "set"))
    assert found.table is CITYSCAPES_IDS and len(found.images) == 4


def test_an_image_without_a_mask(tmp_path):
    found = find_cityscapes(place(sets.cityscapes(tmp_path)))
    (tmp_path / found.masks.name(1)).unlink()
    again = find_cityscapes(place(tmp_path))
    assert again.problems == ((found.images.key(1), "it has no mask"),)
    assert len(again.images) == 3
