import json

import pytest

from limbeck.data.scenes.class_table import counted, find_table, given_table
from limbeck.errors import UserError

PLAIN = [(("sky", 0), ("road", 1), ("car", 2)), frozenset()]
COLOURS = ((1, 2, 3), (4, 5, 6), (7, 8, 9))


def facts(table):
    return [tuple(zip(table.names, table.values, strict=True)), table.ignored]


FILES = {
    "classes.txt": "sky\nroad\n\ncar\n",
    "labels.txt": "0 sky\n1 road\n2 car",
    "codes.txt": "0: sky\n1: road\n2: car",
    "class_names.txt": "__ignore__\nsky\nroad\ncar",
    "meta.json": json.dumps({"classes": ["sky", "road", "car"], "other": 3}),
    "classes.json": json.dumps(["sky", "road", "car"]),
    "id2label.json": json.dumps({"0": "sky", "1": "road", "2": "car"}),
    "label_map.json": json.dumps({"sky": 0, "car": 2, "road": 1}),
    "labels.json": json.dumps(
        [{"id": 2, "name": "car"}, {"id": 0, "name": "sky"}, {"id": 1, "name": "road"}]
    ),
    "class_dict.csv": "name,r,g,b\nsky,1,2,3\nroad,4,5,6\ncar,7,8,9",
    "label_colors.txt": "1 2 3\t\tsky\n4 5 6\t\troad\n7 8 9\t\tcar",
    "labelmap.txt": "# label:color_rgb:parts:actions\nsky:1,2,3::\nroad:4,5,6::\ncar:7,8,9::",
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_names_from_where_they_are(name, tmp_path):
    assert find_table(tmp_path) is None
    (tmp_path / name).write_text(FILES[name])
    table = find_table(tmp_path)
    assert facts(table) == PLAIN
    assert table.where == str(tmp_path / name)
    is_coloured = name in ("class_dict.csv", "label_colors.txt", "labelmap.txt")
    assert table.colours == (COLOURS if is_coloured else ())
    assert facts(given_table((), str(tmp_path / name))) == PLAIN


def test_a_folder_of_masks_may_have_them(tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "classes.txt").write_text("a\nb")
    assert find_table(tmp_path) is None
    assert find_table(tmp_path, ["masks"]).names == ("a", "b")


def test_what_is_no_class(tmp_path):
    (tmp_path / "classes.txt").write_text("0,sky\n1,Void\n5,car")
    assert facts(find_table(tmp_path)) == [(("sky", 0), ("car", 5)), {1}]
    (tmp_path / "class_dict.csv").write_text("sky,1,2,3\nVoid,0,0,0\ncar,7,8,9")
    table = find_table(tmp_path)
    assert facts(table) == [(("sky", 0), ("car", 2)), {1}]
    assert table.colours == ((1, 2, 3), (7, 8, 9)) and table.ignored_colours == {(0, 0, 0)}
    (tmp_path / "meta.json").write_text(json.dumps({"classes": ["a", "b"], "ignore_index": 11}))
    table = find_table(tmp_path)
    assert facts(table) == [(("a", 0), ("b", 1)), {11}] and table.is_counted


def test_files_of_other_programs_are_passed_over(tmp_path):
    (tmp_path / "meta.json").write_text('{"version": 3, "author": "me"}')
    (tmp_path / "labels.json").write_text("no JSON")
    (tmp_path / "classes.csv").write_text("image,label\nx.png,3")
    (tmp_path / "labelmap.txt").write_text("# nothing\n")
    assert find_table(tmp_path) is None
    for name, reason in (("labels.json", "as JSON"), ("labelmap.txt", "names no classes")):
        with pytest.raises(UserError, match=reason):
            given_table((), str(tmp_path / name))
    with pytest.raises(UserError, match="Can't read"):
        given_table((), str(tmp_path / "gone.txt"))


def test_names_of_options():
    assert given_table((), "") is None
    table = given_table(("road=128,64,128", "car = 1, 2, 3"), "")
    assert table.names == ("road", "car") and table.colours == ((128, 64, 128), (1, 2, 3))
    for names, reason in (
        (("road=128",), "no name with a colour"),
        (("road=128,64,300",), "its parts are 0 to 255"),
        (("a=1,2,3", "b"), "each class a colour, or none"),
        (("a", "a"), "has 'a' for two classes"),
        (("a=1,2,3", "b=1,2,3"), "for two classes"),
    ):
        with pytest.raises(UserError, match=reason):
            given_table(names, "")
    assert counted(["x"], "here").is_counted
