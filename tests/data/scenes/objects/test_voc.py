import pytest

from limbeck.data.scenes.objects.open import open_objects
from limbeck.data.scenes.objects.options import ObjectOptions
from tests.data.scenes.objects import sets
from tests.data.scenes.objects.test_open import assert_is_the_set, opened

BOX = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"


def one(root, *objects, size="<size><width>24</width><height>16</height></size>"):
    """The set, its first image with such (class, further, sides)."""
    sets.voc(root)
    parts = [f"<object><name>{n}</name>{more}{BOX.format(*s)}</object>" for n, more, s in objects]
    file = root / "VOCdevkit" / "VOC2012" / "Annotations" / "a1.xml"
    text = f"<annotation><filename>old.jpg</filename>{size}{''.join(parts)}</annotation>"
    file.write_text(text)
    return opened(root)


def test_pixels_are_counted_from_one(tmp_path):
    found = one(tmp_path, ("car", "", (1, 1, 24, 16)), ("dog", "", (2.5, 3, 4.5, 5)))
    assert found.objects(0).boxes.tolist() == [[0, 0, 24, 16], [1.5, 2, 4.5, 5]]
    assert found.objects(0).areas.tolist() == [384, 9]


def test_a_tool_that_counts_from_zero_is_taken_as_it_is(tmp_path):
    found = one(tmp_path, ("car", "", (0, 1, 24, 16)))
    assert found.objects(0).boxes.tolist() == [[0, 1, 24, 16]]
    assert any("begin at 0" in note for note in found.notes)


def test_difficult_ones_are_crowds(tmp_path):
    found = one(tmp_path, ("car", "<difficult>1</difficult>", (1, 1, 9, 9)))
    assert found.objects(0).is_crowd.tolist() == [True]


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>"])
def test_a_size_that_is_missing_is_the_images(size, tmp_path):
    found = one(tmp_path, ("car", "", (1, 1, 9, 9)), size=size)
    assert found.packed.sizes[0].tolist() == [16, 24]


def test_lists_of_splits(tmp_path):
    root = sets.voc(tmp_path)
    (root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main" / "val.txt").write_text("b2\n")
    (root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main" / "train.txt").write_text("a1 \nx9\n")
    found = opened(root)
    assert [found.key(0), len(found)] == ["VOCdevkit/VOC2012/JPEGImages/a1.jpg", 1]
    name = "VOCdevkit/VOC2012/Annotations/x9.xml"
    assert found.problems == ((name, "its annotation is not there"),)
    assert open_objects(str(root), ObjectOptions(), "validation").key(0).endswith("b2.jpg")


def test_what_is_broken_is_named(tmp_path):
    root = sets.voc_beside(tmp_path)
    (root / "train" / "b2.xml").write_text("<annotation><object>")
    (root / "train" / "c3.jpg").unlink()
    text = (root / "train" / "d4.xml").read_text().replace("<xmin>1</xmin>", "<xmin>?</xmin>")
    (root / "train" / "d4.xml").write_text(text)
    (root / "train" / "other.xml").write_text("<x/>")
    found = opened(root)
    assert len(found) == 1
    names = [name for name, _ in found.problems]
    assert names == ["train/b2.xml", "train/c3.xml", "train/d4.xml"]
    assert "can't be read" in found.problems[0][1]
    assert found.problems[1][1] == "its image c3.jpg is not there"
    assert found.problems[2][1] == "its numbers are damaged"


def test_images_without_an_annotation_are_told(tmp_path):
    root = sets.voc_beside(tmp_path)
    (root / "train" / "c3.xml").unlink()
    assert opened(root).notes[0] == "1 image (train/c3.jpg) without an annotation left out."


def test_a_renamed_image_is_found_by_its_annotations_name(tmp_path):
    sets.voc_beside(tmp_path)
    file = tmp_path / "train" / "a1.xml"
    file.write_text(file.read_text().replace("a1.jpg", "b2.jpg"))
    assert_is_the_set(opened(tmp_path))
