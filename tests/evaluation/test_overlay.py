"""Colours of classes, index PNGs, and maps drawn into images."""

import numpy as np
import torch

from limbeck.evaluation.overlay import SWATCH, draw_boxes, draw_map, index_image, palette


def test_every_class_has_a_colour_of_its_own():
    colors = palette(150)
    assert colors.shape == (150, 3) and len({tuple(color) for color in colors.tolist()}) == 150
    near = np.abs(colors[1:12].astype(int) - colors[:11]).sum(axis=1)
    assert near.min() > 100


def test_an_index_image_keeps_its_indices():
    found = torch.tensor([[0, 1], [2, 0]], dtype=torch.uint8)
    image = index_image(found, palette(3))
    assert image.mode == "P" and np.array(image).tolist() == [[0, 1], [2, 0]]
    assert np.array(image.convert("RGB"))[0, 1].tolist() == palette(3)[1].tolist()


def test_a_drawn_map_mixes_colours_and_lists_what_is_there():
    image = np.full((20, 60, 3), 100, np.uint8)
    found = torch.zeros(20, 60, dtype=torch.uint8)
    found[:, 40:] = 2
    colors = palette(3)
    drawn = np.array(draw_map(image, found, colors, ["a", "b", "c"], opacity=0.5))
    assert drawn.shape == (20 + 2 * SWATCH, 60, 3)
    assert drawn[0, 50].tolist() == np.round(50 + colors[2] / 2).tolist()
    assert drawn[22, 2].tolist() == colors[0].tolist()  # the larger first
    more = draw_map(image, found, colors, ["a", "b", "c"], 0.5, num_lines=5)
    assert more.size == (60, 20 + 5 * SWATCH)


def test_boxes_and_masks_are_drawn_where_they_are():
    image = np.zeros((60, 90, 3), np.uint8)
    colors = {"a": np.array([200, 10, 10], np.uint8), "b": np.array([250, 250, 250], np.uint8)}
    inside = np.zeros((60, 90), bool)
    inside[30:50, 20:70] = True
    found = [
        {"class": "a", "score": 0.9, "box": [20, 30, 50, 20]},
        {"class": "b", "score": 0.5, "box": [80, 0, 30, 10]},  # it stands out of the image
    ]
    picture = np.array(draw_boxes(image, found, colors, 0.5, [inside, ~inside & False]))
    assert picture.shape == (4 * 60, 4 * 90, 3)  # enlarged, so that names do not hide it
    assert picture[160, 180].tolist() == [100, 5, 5]  # half of the colour
    assert picture[160, 80].tolist() == picture[200, 180].tolist() == [200, 10, 10]
    assert picture[220, 40].tolist() == [0, 0, 0]
    assert draw_boxes(np.zeros((320, 400, 3), np.uint8), [], colors, 0.5).size == (400, 320)


def test_no_box_crosses_the_name_of_another():
    image, colors = np.zeros((400, 400, 3), np.uint8), {"a": np.array([200, 10, 10], np.uint8)}
    under = {"class": "a", "score": 0.5, "box": [100, 200, 60, 60]}
    above = {"class": "a", "score": 0.9, "box": [110, 100, 200, 200]}
    alone = np.array(draw_boxes(image, [under], colors, 0.5))
    both = np.array(draw_boxes(image, [above, under], colors, 0.5))
    name = (slice(188, 200), slice(100, 140))
    assert np.array_equal(alone[name], both[name]) and len(np.unique(alone[name])) > 3
