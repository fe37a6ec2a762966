"""What a set of images with objects holds, in numbers and in words."""

from limbeck.data.scenes.objects.describe import describe_objects
from limbeck.data.scenes.objects.open import open_objects
from limbeck.data.scenes.objects.options import ObjectOptions
from tests.data.scenes.objects import sets


def test_counts_and_lines(tmp_path):
    root = sets.write_coco(tmp_path)
    (root / "c.jpg").write_bytes(b"no image")
    source = open_objects(str(root), ObjectOptions(root=str(root)))
    for workers in (0, 2):
        found = describe_objects(source, workers)
        assert (found.num_images, found.num_negatives) == (2, 1)
        assert found.objects == {"cat": 1, "dog": 1, "emu": 0} and found.absent() == ["emu"]
        assert found.images == {"cat": 1, "dog": 1, "emu": 0}
        assert found.by_size == (2, 0, 0) and found.most == ("a.jpg", 2)
        assert found.sizes == ((60, 40), (60, 40)) and len(found.bad) == 1
    text = "\n".join(found.lines())
    for words in (
        "2 with 2 objects of 3 classes, recognised as COCO annotations (annotations.json)",
        "1 images have no object", "2 objects in a.jpg", "100 % small",
        "dog: 1 objects in 1 images",
    ):  # fmt: skip
        assert words in text
