"""Colours of classes, index PNGs, and maps drawn into images."""

import numpy as np
import torch

from limbeck.evaluation.overlay import SWATCH, draw_map, index_image, palette


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
