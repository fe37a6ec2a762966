import numpy as np
import pytest

from limbeck.data.scenes.class_table import ClassTable, counted
from limbeck.data.scenes.coding import Coding, deduce
from limbeck.data.scenes.options import SceneOptions
from limbeck.data.scenes.pixels import RawMask
from limbeck.data.scenes.published import CAMVID, CITYSCAPES, voc_colour
from limbeck.data.source import BadImage
from limbeck.errors import UserError
from limbeck.records import IGNORE

NO_OPTIONS = SceneOptions()


def values(*numbers, **facts):
    return RawMask(np.array([numbers], np.uint8), **facts)


def colours(*triples, **facts):
    return RawMask(np.array([triples], np.uint8), **facts)


def test_values_become_classes_or_are_ignored():
    coding = Coding(("a", "b"), {7: 0, 11: 1, 0: IGNORE}, "here")
    expected = [[0, 1, IGNORE]]
    for dtype in (np.uint8, np.uint16, np.int32, np.int64):
        found = coding.apply(RawMask(np.array([[7, 11, 0]], dtype)))
        assert found.tolist() == expected and found.dtype == np.uint8
    for strange in (12, 70_000, -1):
        with pytest.raises(BadImage) as caught:
            coding.apply(RawMask(np.array([[7, strange, strange]], np.int32)))
        assert str(caught.value) == (
            f"its mask has the value {strange} at 2 pixels, which is no class (the values are 0, "
            "7, 11)"
        )
    with pytest.raises(BadImage, match="in colours, those of the others are values"):
        coding.apply(colours((1, 2, 3)))


def test_colours_become_classes():
    coding = Coding(("a", "b"), {0x010203: 0, 0xFF0000: 1}, "here", is_colour=True)
    assert coding.apply(colours((1, 2, 3), (255, 0, 0))).tolist() == [[0, 1]]
    palette = np.array([[255, 0, 0], [1, 2, 3]], np.uint8)
    assert coding.apply(values(0, 1, palette=palette)).tolist() == [[1, 0]]
    with pytest.raises(BadImage, match=r"the colour \(1, 2, 40\) at 1 pixels, which is no class"):
        coding.apply(colours((1, 2, 40)))


def test_colours_may_be_rounded():
    coding = Coding(("a", "b"), {0x010203: 0, 0xFF0000: 1}, "here", is_colour=True)
    assert coding.apply(colours((1, 2, 5), (253, 1, 2), (1, 2, 3))).tolist() == [[0, 1, 0]]
    with pytest.raises(BadImage, match=r"the colour \(1, 2, 6\) at 2 pixels"):
        coding.apply(colours((1, 2, 6), (1, 2, 4), (1, 2, 6)))


def test_a_palette_of_known_colours_is_read_by_them():
    table = counted(["a", "b"], "here", [(10, 20, 30), (200, 20, 10)])
    raws = [values(0, 1, palette=np.array([[200, 20, 10], [10, 20, 30]], np.uint8))]
    assert deduce(raws, table, NO_OPTIONS).apply(raws[0]).tolist() == [[1, 0]]
    # Of other colours it is what it always is: values.
    raws = [values(0, 1, palette=np.array([[9, 20, 10], [10, 20, 30]], np.uint8))]
    assert deduce(raws, table, NO_OPTIONS).apply(raws[0]).tolist() == [[0, 1]]


def test_blurred_colours_are_the_nearest():
    table = counted(["a", "b"], "here", [(10, 20, 30), (200, 20, 10)])
    raws = [colours((12, 18, 33), (190, 30, 30), is_blurred=True)]
    assert deduce(raws, table, NO_OPTIONS).apply(raws[0]).tolist() == [[0, 1]]
    with pytest.raises(UserError, match=r"in 2 colours of JPEG, .* --data.class-file"):
        deduce(raws, None, NO_OPTIONS)
    with pytest.raises(UserError, match="JPEG, which blurs their values"):
        deduce([values(*range(0, 250, 10), is_blurred=True)], None, NO_OPTIONS)


@pytest.mark.parametrize(
    ("seen", "classes"),
    [
        ((0, 1), ("background", "foreground")),
        ((0, 255), ("background", "foreground")),
        ((0, 1, 255), ("background", "foreground")),
        ((0, 1, 2, 4), ("0", "1", "2", "3", "4")),
        ((1, 2), ("0", "1", "2")),
        ((0, 85, 170), ("0", "85", "170")),
        ((0, 128, 255), ("0", "128")),
    ],
)
def test_values_without_names(seen, classes):
    assert deduce([values(*seen)], None, NO_OPTIONS).classes == classes


def test_black_and_white_with_names():
    raws = [values(0, 255)]
    for names, classes in ((("a", "b"), ("a", "b")), (("polyp",), ("background", "polyp"))):
        coding = deduce(raws, counted(names, "here"), NO_OPTIONS)
        assert coding.classes == classes and coding.apply(raws[0]).tolist() == [[0, 1]]
    # Of three classes, 255 is the one that is none.
    coding = deduce(raws, counted("abc", "here"), NO_OPTIONS)
    assert coding.apply(raws[0]).tolist() == [[0, IGNORE]]


def test_the_background():
    no_background = SceneOptions(ignore_background=True)
    raws = [values(0, 1, 2)]
    for table in (
        None,
        counted(("background", "b", "c"), "here"),
        counted(("b", "c"), "here"),
        ClassTable(("b", "c"), (1, 2), "here"),
    ):
        coding = deduce(raws, table, no_background)
        assert coding.apply(raws[0]).tolist() == [[IGNORE, 0, 1]]
        assert coding.classes == (("b", "c") if table else ("1", "2"))
        if table is None or len(table.names) == 3:
            layout = deduce(
                raws, table, SceneOptions(ignore_background=False), has_background=False
            )
            assert layout.apply(raws[0]).tolist() == [[0, 1, 2]]
    black = [colours((0, 0, 0), (9, 8, 7), (1, 2, 3))]
    assert deduce(black, None, no_background).apply(black[0]).tolist() == [[IGNORE, 1, 0]]


@pytest.mark.parametrize(
    ("table", "none"),
    [
        ([colour for _, colour in CAMVID], (0, 0, 0)),
        ([colour for _, _, colour in CITYSCAPES], (111, 74, 0)),
        ([voc_colour(value) for value in range(21)], (224, 224, 192)),
    ],
)
def test_published_colours_are_known(table, none):
    raws = [colours(*table, none)]
    assert deduce(raws, None, NO_OPTIONS).apply(raws[0]).tolist() == [[*range(len(table)), IGNORE]]


def test_colours_without_a_table():
    raws = [colours((9, 8, 7), (1, 2, 3))]
    coding = deduce(raws, None, NO_OPTIONS)
    assert coding.classes == ("#010203", "#090807") and coding.apply(raws[0]).tolist() == [[1, 0]]
    with pytest.raises(UserError, match="nothing says which class"):
        deduce(raws, counted(("a", "b"), "here"), NO_OPTIONS)
    photo = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    with pytest.raises(UserError, match=r"in 400 colours, and nothing says .* --data.class-file"):
        deduce([RawMask(photo)], None, NO_OPTIONS)
    with pytest.raises(UserError, match="ignore_values has no effect on masks in colours"):
        deduce(raws, None, SceneOptions(ignore_values=(3,)))


def test_palettes_that_differ_tell_by_their_colours():
    red_first = np.array([[255, 0, 0], [0, 0, 255]], np.uint8)
    raws = [values(0, 1, palette=red_first), values(0, 1, palette=red_first[::-1])]
    coding = deduce(raws, None, NO_OPTIONS)
    assert coding.classes == ("#0000ff", "#ff0000")
    assert [coding.apply(raw).tolist() for raw in raws] == [[[1, 0]], [[0, 1]]]
    same = [values(0, 1, palette=red_first), values(1, palette=red_first)]
    assert deduce(same, None, NO_OPTIONS).classes == ("background", "foreground")


def test_one_strange_mask_is_no_reason_to_refuse():
    table = counted("abc", "here")
    raws = [*[values(0, 1, 2)] * 9, values(0, 77)]
    assert deduce(raws, table, NO_OPTIONS).classes == ("a", "b", "c")
    with pytest.raises(UserError, match=r"3 of 11 masks don't fit the classes of here"):
        deduce([*raws, *raws[-1:] * 2][1:], table, NO_OPTIONS)


def test_too_few_or_too_many_classes():
    with pytest.raises(UserError, match=r"have 1 class \(a\), and 2 to 254 can"):
        deduce([values(0, 1)], counted("ab", "here"), SceneOptions(merge=("ignore=b",)))
    many = RawMask(np.arange(300, dtype=np.uint16)[None])
    with pytest.raises(UserError, match="have 300 classes, and 2 to 254 can"):
        deduce([many], None, NO_OPTIONS)


def test_merging():
    table = counted(("a", "b", "c", "d"), "here")
    raws = [values(0, 1, 2, 3, 255)]
    for merge, classes, expected in (
        (("b=b,d",), ("a", "b", "c"), [0, 1, 2, 1, IGNORE]),
        (("x=a,c", "ignore=d"), ("x", "b"), [0, 1, 0, IGNORE, IGNORE]),
    ):
        coding = deduce(raws, table, SceneOptions(merge=merge))
        assert coding.classes == classes and coding.apply(raws[0]).tolist() == [expected]
    for merge in ("a", "=a,b", "x=a,"):
        with pytest.raises(UserError, match="not of the form vehicle=car,truck,bus"):
            SceneOptions(merge=(merge,))
