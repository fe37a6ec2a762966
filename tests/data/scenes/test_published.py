from limbeck.data.scenes.published import (
    CAMVID,
    CITYSCAPES_IDS,
    CITYSCAPES_TRAIN_IDS,
    COLOUR_TABLES,
    VOC,
    voc_colour,
)  # fmt: skip


def test_vocs_palette():
    assert [voc_colour(value) for value in (0, 1, 2, 7, 15, 20, 255)] == [
        (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 128), (192, 128, 128), (0, 64, 128),
        (224, 224, 192),
    ]  # fmt: skip


def test_the_sets_have_their_classes():
    assert len(VOC.names) == 21 and len(CAMVID) == 31
    assert len(CITYSCAPES_IDS.names) == 19 and len(CITYSCAPES_IDS.ignored) == 34 - 19
    assert CITYSCAPES_IDS.values[:3] == (7, 8, 11)
    assert CITYSCAPES_TRAIN_IDS.values == tuple(range(19))
    for table in COLOUR_TABLES:
        assert len(table.colours) == len(table.names) == len(set(table.colours))
        assert not table.ignored_colours & set(table.colours)
