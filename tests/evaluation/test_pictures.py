"""Pictures of an analysis: files that name everything, at any number and depth of networks."""

import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from limbeck.errors import UserError
from limbeck.evaluation import pictures
from limbeck.evaluation.pictures import (
    draw_analysis,
    draw_attention,
    draw_confusion,
    draw_corruptions,
    draw_similarity,
)
from limbeck.evaluation.robustness import summarize
from tests.evaluation.analyses import analysis, similarity
from tests.evaluation.test_robustness import GROUPS

NAMES = ["similarity", "attention_distance", "attention_entropy", "probing", "layers_kept"]
LONG = "a_very_long_name_of_a_run_folder_that_goes_on_and_on_seed_0_of_three_and_more_words"


def words_of(svg):
    return " ".join(ElementTree.parse(svg).getroot().itertext())


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Two networks of other depth."""
    out = tmp_path_factory.mktemp("pictures")
    return out, draw_analysis(analysis(["mae_tiny", "deit"], [4, 24]), out)


def test_every_part_is_drawn_twice(drawn):
    out, paths = drawn
    assert paths == [out / f"{name}{suffix}" for name in NAMES for suffix in (".png", ".svg")]
    assert tuple(path.name for path in paths) == pictures.PICTURES
    for path in paths[::2]:
        with Image.open(path) as image:
            assert min(image.size) > 500
            assert len(image.convert("RGB").getcolors(2**24)) > 20


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("similarity", ["layer of mae_tiny", "layer of deit", "CKA", "0.0", "1.0", "1,024 images"]),
        ("attention_distance", ["attention distance (px)", "mae_tiny", "deit", "block (0: first)"]),
        ("attention_entropy", ["attention entropy (nats)", "one head", "looks everywhere alike"]),
        ("probing", ["kNN", "linear probe", "top-1 accuracy (%)", "95 % interval", "mae_tiny"]),
        ("layers_kept", ["100 % of the labels", "10 % of the labels", "over 3 seeds", "deit"]),
    ],
)
def test_a_picture_says_what_it_shows(drawn, name, words):
    text = words_of(drawn[0] / f"{name}.svg")
    assert [word for word in words if word not in text] == []


def test_five_networks_with_long_names(tmp_path):
    names = [LONG, "mae_tiny", "moco with words in it, quite many of them", "x" * 40, "deit"]
    found = analysis(names, [12, 12, 4, 24, 12])
    del found["parts"]["layers"], found["parts"]["attention"]
    assert len(draw_analysis(found, tmp_path)) == 4
    assert "a_very_long_name" in words_of(tmp_path / "probing.svg")


def test_parts_that_are_not_there_are_not_drawn(tmp_path):
    found = analysis(["one"], [4])
    found["parts"] = {"similarity": [], "attention": {}, "probing": {}, "layers": []}
    assert draw_analysis(found, tmp_path) == []


def test_layers_and_blocks_without_a_value(tmp_path):
    pair = similarity("one", "other", 3, 3)
    pair["cka"][1] = [None] * 4
    png, _ = draw_similarity(tmp_path / "similarity", [pair], num_images=8)
    assert png.exists()
    found = analysis(["one"], [3])["parts"]["attention"]
    for values in found["one"].values():
        if isinstance(values, list):
            values[0] = values[2] = None
    png, svg = draw_attention(tmp_path / "attention", found, "distance", 8)
    assert "one head" in words_of(svg)


@pytest.fixture
def figures(monkeypatch):
    """All figures that are saved."""
    saved = []
    save = pictures.save_figure
    monkeypatch.setattr(
        pictures, "save_figure", lambda figure, file: (saved.append(figure), save(figure, file))[1]
    )
    return saved


def test_titles_of_one_panel_are_not_cut_off(tmp_path, figures):
    found = analysis(["one"], [4])
    found["parts"]["layers"] = [
        run for run in found["parts"]["layers"] if run["label_fraction"] == 1
    ]
    draw_analysis(found, tmp_path)
    assert len(figures) == 5
    for figure in figures:
        title = figure._suptitle.get_window_extent(figure.canvas.get_renderer())
        assert title.x1 <= figure.bbox.x1


def test_a_later_network_is_not_cut_off(tmp_path, figures):
    """The panels share one scale, and it reaches up to the farthest head of all."""
    near, far = ({"distance": [[value, value]], "uniform_distance": [9.0]} for value in (3.0, 50.0))
    draw_attention(tmp_path / "attention", {"near": near, "far": far}, "distance", 8)
    assert [axes.get_ylim()[0] for axes in figures[0].axes] == [0, 0]
    assert all(axes.get_ylim()[1] > 50 for axes in figures[0].axes)


def test_names_that_are_cut_alike_keep_their_lines(tmp_path):
    names = [f"{'a' * 40}_{middle}_{'b' * 40}" for middle in ("one", "other")]
    found = analysis(names, [4, 4])
    found["parts"] = {"probing": found["parts"]["probing"]}
    svg = draw_analysis(found, tmp_path)[1]
    assert words_of(svg).count("aa...bb") == 2


def test_no_block_at_all(tmp_path):
    """A network with nothing but windows has an empty panel."""
    nothing = {"distance": [None], "uniform_distance": [None]}
    _, svg = draw_attention(tmp_path / "attention", {"windows": nothing}, "distance", 8)
    assert "windows" in words_of(svg)


def test_the_same_data_gives_the_same_bytes(drawn, tmp_path):
    found = analysis(["mae_tiny", "deit"], [4, 24])
    found["parts"] = {"similarity": found["parts"]["similarity"]}
    for path in draw_analysis(found, tmp_path):
        assert path.read_bytes() == (drawn[0] / path.name).read_bytes()


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"limbeck\[plot\]"):
        draw_analysis(analysis(["one"], [4]), tmp_path)


def test_corruptions_are_drawn_of_the_answerer_that_most_roles_have(tmp_path):
    paths = draw_corruptions(tmp_path / "corruptions.png", summarize(GROUPS))
    assert [path.name for path in paths] == ["corruptions.png", "corruptions.svg"]
    words = words_of(paths[1])
    assert "linear probe of clean images, 4 test images" in words
    assert "standard deviation over up to 2 runs" in words
    for word in ("student", "baseline", "teacher", "fog", "snow", "severity (0: clean)"):
        assert word in words


@pytest.mark.parametrize(("count", "has_names"), [(3, True), (40, True), (80, False)])
def test_a_confusion_of_any_number_of_classes(tmp_path, count, has_names):
    confusion = 3 * np.eye(count, dtype=np.int64)
    confusion[0] = 0  # a class without images
    confusion[1, 2] = 9
    paths = draw_confusion(tmp_path / "confusion", confusion, [f"class_{i}" for i in range(count)])
    assert [path.suffix for path in paths] == [".png", ".svg"]
    text = words_of(paths[1])
    assert ("class_1" in text) == has_names
    assert (" 75 " in text) == (count <= pictures.MOST_NUMBERED)
    assert "answer" in text and f"Confusion, {3 * count + 6:,} answers" in text
