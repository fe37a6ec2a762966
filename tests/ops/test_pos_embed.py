"""Position tables: known entries and sums of MAE's, a slow loop, and resizing."""

import math
import warnings
from functools import partial

import pytest
import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table

from limbeck.errors import UserError
from limbeck.ops.pos_embed import (
    interpolate_pos_embed,
    is_sincos_2d,
    resize_distances,
    resize_offsets,
    sincos_2d,
)

GOLDEN = [  # width, row, channel, value (14 x 14 patches, one prefix row)
    (192, 2, 0, 0.84147098),
    (192, 2, 1, 0.73482198),
    (192, 2, 48, 0.54030231),
    (192, 2, 96, 0.0),
    (192, 2, 144, 1.0),
    (192, 14, 1, -0.96500867),  # row 0, column 13
    (192, 15, 0, 0.0),
    (192, 15, 48, 1.0),
    (192, 15, 96, 0.84147098),
    (192, 15, 144, 0.54030231),
    (192, 196, 0, 0.42016704),
    (192, 196, 1, -0.96500867),
    (192, 196, 48, 0.90744678),
    (192, 34, 0, -0.9589242747),  # row 2, column 5
    (192, 34, 1, -0.8335087902),
    (192, 34, 48, 0.2836621855),
    (192, 34, 96, 0.9092974268),
    (192, 34, 97, 0.9968007437),
    (192, 34, 144, -0.4161468365),
    (96, 34, 1, -0.2617815761),  # of MAE-Lite's decoder
    (96, 34, 24, 0.2836621855),
    (96, 34, 48, 0.9092974268),
    (96, 34, 72, -0.4161468365),
    (768, 2, 1, 0.81525065),
    (768, 196, 1, -0.17437020),
]


@pytest.mark.parametrize(("width", "row", "channel", "value"), GOLDEN)
def test_golden_entries(width, row, channel, value):
    table = sincos_2d(width, (14, 14), 1)
    assert table[row, channel].item() == pytest.approx(value, abs=5e-8)  # one float32 step


@pytest.mark.parametrize(
    ("width", "total"), [(96, 8576.0284009), (192, 17277.554156), (768, 69594.493859)]
)
def test_golden_sums(width, total):
    table = sincos_2d(width, (14, 14), 1)
    assert table.shape == (197, width)
    assert table.dtype == torch.float32
    assert table[0].eq(0).all()
    # Rounding to float32 moves the sum of 37,824 (151,296) values by about 1e-5.
    assert table.double().sum().item() == pytest.approx(total, abs=2e-4)


@pytest.mark.parametrize("width", [192, 384, 768])
def test_golden_sum_of_squares(width):
    # Half a sine's and half a cosine's square in every channel: D / 2 for each of 196 patches.
    table = sincos_2d(width, (14, 14), 1)
    assert table.double().square().sum().item() == pytest.approx(196 * width / 2)


@pytest.mark.parametrize("num_prefix_tokens", [0, 1, 5])
def test_the_fixed_table_is_told_from_others(num_prefix_tokens):
    table = sincos_2d(16, (3, 4), num_prefix_tokens)[None]
    is_fixed = partial(is_sincos_2d, num_prefix_tokens=num_prefix_tokens, grid=(3, 4))
    assert is_fixed(table) and is_fixed(table + 1e-6)
    assert is_fixed(table.half()) and is_fixed(table.bfloat16().float())
    assert is_fixed(table.roll(8, dims=2))  # MoCo-v3's: rows first
    assert not is_fixed(table.roll(4, dims=2))
    assert not is_fixed(table + 1e-3)
    assert not is_fixed(table[:, 1:])
    assert not is_sincos_2d(table, num_prefix_tokens, (4, 3))
    assert not is_sincos_2d(table[..., :6], num_prefix_tokens, (3, 4))


def test_rectangular_grid_against_a_loop():
    table = sincos_2d(8, (2, 3), 2)
    for y in range(2):
        for x in range(3):
            omega = [1.0, 10000**-0.5]
            expected = [math.sin(x * w) for w in omega] + [math.cos(x * w) for w in omega]
            expected += [math.sin(y * w) for w in omega] + [math.cos(y * w) for w in omega]
            torch.testing.assert_close(table[2 + 3 * y + x], torch.tensor(expected))
    assert table[:2].eq(0).all()


def test_width_must_be_a_multiple_of_four():
    with pytest.raises(UserError, match="4 divides, not 6"):
        sincos_2d(6, (2, 2), 1)


@pytest.mark.parametrize("num_prefix_tokens", [0, 1, 5])
@pytest.mark.parametrize("grid_to", [(4, 4), (7, 7), (3, 6)])
def test_interpolation_is_timms(num_prefix_tokens, grid_to):
    table = torch.randn(1, num_prefix_tokens + 16, 12)
    resized = interpolate_pos_embed(table, num_prefix_tokens, (4, 4), grid_to)
    expected = resample_abs_pos_embed(table, list(grid_to), [4, 4], num_prefix_tokens)
    torch.testing.assert_close(resized, expected)
    assert torch.equal(resized[:, :num_prefix_tokens], table[:, :num_prefix_tokens])


def test_interpolation_from_a_rectangle_keeps_type_and_a_constant():
    table = torch.full((1, 1 + 6, 4), 0.5, dtype=torch.bfloat16)
    resized = interpolate_pos_embed(table, 1, (2, 3), (5, 4))
    assert resized.dtype == torch.bfloat16
    torch.testing.assert_close(resized, torch.full((1, 21, 4), 0.5, dtype=torch.bfloat16))


def test_rows_must_fit_the_grid():
    with pytest.raises(UserError, match="198 rows does not fit 1 prefix tokens and a grid of 14"):
        interpolate_pos_embed(torch.zeros(1, 198, 4), 1, (14, 14), (7, 7))


def test_offsets_are_resized_as_published():
    """Golden: 3 x 3 to 5 x 5, first row; timm's kernel would begin with -0.302."""
    table = torch.arange(9.0)[None]
    found = resize_offsets(table, 25)
    expected = torch.tensor([-0.3839999, 0.0280007, 0.7120003, 1.3960004, 1.8080006])
    torch.testing.assert_close(found[0, :5], expected, atol=1e-6, rtol=0)
    assert resize_offsets(table.half(), 25).dtype == torch.float16
    assert torch.equal(resize_offsets(table, 9), table)


@pytest.mark.parametrize(("columns", "num_offsets"), [(8, 25), (9, 24)])
def test_offsets_of_no_square_window_are_refused(columns, num_offsets):
    with pytest.raises(UserError, match="must be those of a square window"):
        resize_offsets(torch.zeros(2, columns), num_offsets)


def test_without_antialiasing_it_is_torch_s_bicubic():
    table = torch.randn(1, 17, 6)
    resized = interpolate_pos_embed(table, 1, (4, 4), (8, 3), antialias=False)
    image = table[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(image, (8, 3), mode="bicubic", align_corners=False)
    torch.testing.assert_close(resized[:, 1:], expected.permute(0, 2, 3, 1).flatten(1, 2))


def field(side):
    offsets = torch.arange(1 - side, side, dtype=torch.float64)
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    return torch.exp(-(y**2 + 2 * x**2) / 50) + 0.1 * y / (side - 1)


def test_distances_are_resized_as_published():
    """Golden row 11: windows of 14 to 32, between which a spline runs, not timm's lines."""
    others = torch.tensor([[7.0], [8.0], [9.0]], dtype=torch.float64)
    table = torch.cat((field(14).reshape(-1, 1), others))
    found = resize_distances(table, (14, 14), (32, 32))
    assert torch.equal(found[-3:], others)
    places = found[:-3].view(63, 63)
    for (row, column), expected in {
        (31, 31): 1.0, (31, 33): 0.8671842410, (10, 20): -0.0684006090, (0, 0): -0.0999602395,
    }.items():  # fmt: skip
        assert places[row, column].item() == pytest.approx(expected, abs=1e-9)
    assert places.sum().item() == pytest.approx(253.0745380862, abs=1e-8)
    with warnings.catch_warnings(action="ignore"):  # of timm's way through memory
        lines = resize_rel_pos_bias_table(table.float(), (32, 32), (3972, 1))
    assert 1e-3 < (lines - found).abs().max() < 0.01


def test_distances_of_each_side_are_resized_by_themselves():
    table = field(5).reshape(-1, 1)
    wide = resize_distances(table, (5, 5), (5, 9)).view(9, 17)
    torch.testing.assert_close(wide[:, 8], field(5)[:, 4], atol=1e-5, rtol=0)
    back = resize_distances(wide.reshape(-1, 1), (5, 9), (9, 5)).view(17, 9)
    assert back[8, 4].item() == pytest.approx(1, abs=1e-6)  # a token with itself
    assert torch.equal(table, field(5).reshape(-1, 1))


@pytest.mark.parametrize("sides", [(1, 4), (2, 5), (2, 2), (7, 3), (1, 1)])
def test_small_windows_and_smaller_ones(sides):
    old, new = sides
    table = torch.full(((2 * old - 1) ** 2 + 3, 2), 0.5)
    found = resize_distances(table, (old, old), (new, new))
    torch.testing.assert_close(found, torch.full(((2 * new - 1) ** 2 + 3, 2), 0.5))


def test_a_table_that_is_too_short():
    with pytest.raises(UserError, match="A table of 20 relative positions is not of a window of 3"):
        resize_distances(torch.zeros(20, 2), (3, 3), (4, 4))
