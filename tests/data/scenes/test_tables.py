import pytest

from limbeck.data.scenes.options import SceneOptions
from limbeck.data.scenes.tables import find_in_tables
from limbeck.errors import UserError
from tests.data.images import encode
from tests.data.scenes import sets

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def write(root, name, *columns):
    row = [{"bytes": encode(sets.images()[0]), "path": None}]
    root.mkdir(exist_ok=True)
    content = pa.table({column: row for column in columns} | {"width": [3]})
    pq.write_table(content, root / name)
    return str(root)


@pytest.mark.parametrize("column", ["mask", "label", "annotation", "any"])
def test_the_mask_column_by_its_name_or_as_the_only_other(column, tmp_path):
    found = find_in_tables(write(tmp_path, "x.parquet", "image", column), SceneOptions(), "train")
    assert found.masks.name(0) == f"its column '{column}'"
    assert f"masks in '{column}'" in found.layout


def test_several_columns(tmp_path):
    root = write(tmp_path, "x.parquet", "image", "first", "second")
    with pytest.raises(UserError, match=r"More than one .* beside 'image' \(first,second\)"):
        find_in_tables(root, SceneOptions(), "train")
    found = find_in_tables(root, SceneOptions(label_column="second"), "train")
    assert found.masks.name(0) == "its column 'second'"
    with pytest.raises(UserError, match="no column 'width' of masks as images beside 'image'"):
        find_in_tables(root, SceneOptions(label_column="width"), "train")
    root = write(tmp_path / "other", "x.parquet", "image")
    with pytest.raises(UserError, match="No column .* could hold masks"):
        find_in_tables(root, SceneOptions(), "train")


def test_splits_and_names_of_a_folder(tmp_path):
    for split in ("train", "test"):
        write(tmp_path, f"{split}-00000.parquet", "image", "mask")
    (tmp_path / "classes.txt").write_text("a\nb\nc")
    found = find_in_tables(str(tmp_path), SceneOptions(), "test")
    assert found.splits == ("test", "train") and len(found.images) == 1
    assert found.table.names == ("a", "b", "c")


def test_the_hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = pq.read_table(sets.table(tmp_path) / "train.parquet").to_pydict()
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: datasets.Dataset.from_dict(rows))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    found = find_in_tables("hf:somebody/streets", SceneOptions(), "train")
    assert found.layout == "a table with images in 'image' and masks in 'label'"
    for index, labels in enumerate(sets.label_maps()):
        assert (found.masks.read(index).pixels == labels).all()
