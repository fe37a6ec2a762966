import pytest

from limbeck.data.scenes.objects.describe import describe_objects
from limbeck.data.scenes.objects.open import open_objects
from limbeck.data.scenes.objects.options import ObjectOptions
from tests.data.scenes.objects import sets


@pytest.fixture
def source(tmp_path):
    root = sets.coco(tmp_path)
    (root / "images" / "b2.jpg").write_bytes(b"no image")
    return open_objects(str(root), ObjectOptions(merge=("cow=dog",)))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_all_is_counted(num_workers, source):
    told = []
    report = describe_objects(source, num_workers, lambda *at: told.append(at))
    assert report.num_images == 3 and report.num_negatives == 1 and report.num_crowds == 0
    assert report.objects == {"car": 2, "cow": 0, "person": 3}
    assert report.images == {"car": 2, "cow": 0, "person": 2}
    assert report.absent() == ["cow"]
    assert report.sizes == ((24, 16), (30, 18)) and report.most == ("images/d4.jpg", 3)
    assert report.by_area == (5, 0, 0)
    assert [key for key, _ in report.bad] == ["images/b2.jpg"]
    assert told[-1] == (4, 4)
    lines = list(report.lines())
    assert lines[0].startswith("images      3 with 5 objects of 3 classes, recognised as COCO")
    assert "class       cow: 0 objects, nowhere (--data.merge)" in lines
    assert any(line.endswith("most in one image: 3 (images/d4.jpg)") for line in lines)
