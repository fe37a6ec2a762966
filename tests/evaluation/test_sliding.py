"""Maps of images of any size: windows as published, no shortcut seen in the result, bounded."""

import pytest
import torch
from torch.nn import functional as F

from limbeck.errors import NotFiniteError, UserError
from limbeck.evaluation import sliding
from limbeck.evaluation.options import MapOptions
from limbeck.evaluation.sliding import (
    check_stride,
    fitted_size,
    predict_map,
    resized_rows,
    window_starts,
)
from limbeck.models.dense.build import at_img_size
from limbeck.records import Tap
from tests.models.dense.test_segmenter import small

LOGITS = Tap("logits")
AS_IT_IS = MapOptions(resize="none")


@pytest.mark.parametrize(
    ("side", "starts"),
    [
        (512, [0]),
        (683, [0, 171]),
        (853, [0, 341]),
        (854, [0, 341, 342]),
        (1024, [0, 341, 512]),
        (600, [0, 88]),
        (1366, [0, 341, 682, 854]),
        (640, [0, 128]),
        (2048, [0, 341, 682, 1023, 1364, 1536]),
        (100, [0]),
    ],
)
def test_golden_windows(side, starts):
    """Golden row 9, and g2sd.md's."""
    assert window_starts(side, 512, 341) == starts


def test_golden_sizes():
    """Golden row 8: what an image has before its windows."""
    sizes = [(480, 640), (375, 500), (400, 2000), (500, 3000)]
    fitted = [(512, 683), (512, 683), (410, 2048), (341, 2048)]
    assert [fitted_size(size, 512) for size in sizes] == fitted


@pytest.mark.parametrize("size_to", [(7, 9), (40, 31), (5, 60), (12, 8)])
def test_rows_of_a_resized_map_are_those_of_the_whole(size_to):
    whole = torch.randn(3, 12, 8)
    expected = F.interpolate(whole[None], size_to, mode="bilinear", align_corners=False)[0]
    asked = []

    def read(rows):
        asked.append(rows)
        return whole[:, rows]

    for start in range(0, size_to[0], 3):
        rows = slice(start, min(start + 3, size_to[0]))
        found = resized_rows(read, (12, 8), size_to, rows)
        torch.testing.assert_close(found, expected[:, rows])
    assert all(0 <= rows.start < rows.stop <= 12 for rows in asked)
    if size_to[0] > 20:
        assert max(rows.stop - rows.start for rows in asked) <= 3


def directly(segmenter, image, options):
    """All windows' logits summed at full size, as published, then resized."""
    own, size = segmenter.facts.img_size[0], tuple(image.shape[1:])
    seen = fitted_size(size, own) if options.resize == "fit" else size
    x = F.interpolate(image[None], seen, mode="bilinear", align_corners=False)
    height, width = (max(side, own) for side in seen)
    filled = segmenter.backbone.mean.expand(1, 3, height, width).clone()
    filled[:, :, : seen[0], : seen[1]] = x
    total, count = torch.zeros(1, 5, height, width), torch.zeros(height, width)
    stride = options.stride or own * 2 // 3
    for top in window_starts(height, own, stride):
        for left in window_starts(width, own, stride):
            window = filled[:, :, top : top + own, left : left + own]
            logits = segmenter(window, None, (LOGITS,)).taps[LOGITS]
            if options.flip:
                mirrored = segmenter(window.flip(-1), None, (LOGITS,)).taps[LOGITS]
                logits = (logits + mirrored.flip(-1)) / 2
            wide = F.interpolate(logits, (own, own), mode="bilinear", align_corners=False)
            total[:, :, top : top + own, left : left + own] += wide
            count[top : top + own, left : left + own] += 1
    total = (total / count)[:, :, : seen[0], : seen[1]]
    return F.interpolate(total, size, mode="bilinear", align_corners=False)[0].argmax(0)


@pytest.mark.parametrize("size", [(50, 70), (32, 32), (20, 100), (45, 35)])
@pytest.mark.parametrize(
    "options", [MapOptions(), AS_IT_IS, MapOptions(resize="none", flip=True, stride=15)]
)
def test_in_bands_it_is_what_it_is_at_once(size, options, monkeypatch):
    segmenter, image = small(head="upernet"), torch.rand(3, *size)
    with torch.no_grad():
        expected = directly(segmenter, image, options)
    for values in (2**24, 5 * size[1] * 4):  # all rows at once, and four at a time
        monkeypatch.setattr(sliding, "MAX_VALUES", values)
        found = predict_map(segmenter, image, options)
        assert found.dtype == torch.uint8 and found.shape == size
        assert torch.equal(found.long(), expected)


def test_of_a_tall_image_no_more_than_a_band_is_held(monkeypatch):
    """A hundred rows of windows: what is kept of them does not grow."""
    monkeypatch.setattr(sliding, "MAX_VALUES", 5 * 32 * 8)
    held, seen, segmenter = [], [], small()
    usual = sliding.Windows._predict_row

    def counting(self, top):
        held.append(len(self.kept))
        seen.append(top)
        return usual(self, top)

    monkeypatch.setattr(sliding.Windows, "_predict_row", counting)
    largest = []
    argmax = torch.Tensor.argmax

    def watched(self, *args, **kwargs):
        largest.append(self.numel())
        return argmax(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "argmax", watched)
    predict_map(segmenter, torch.rand(3, 2000, 32), AS_IT_IS)
    assert len(seen) == len(set(seen)) == 95  # each row of windows is computed once
    assert max(held) <= 2 and max(largest) <= 5 * 32 * 8


def test_whole():
    segmenter, image = small("tiny-vit"), torch.rand(3, 48, 80)
    options = MapOptions(mode="whole", resize="none")
    found = predict_map(segmenter, image, options)
    with torch.no_grad():
        logits = at_img_size(segmenter, (48, 80))(image[None], None, (LOGITS,)).taps[LOGITS]
    wide = F.interpolate(logits, (48, 80), mode="bilinear", align_corners=False)
    assert torch.equal(found.long(), wide[0].argmax(0))
    odd = predict_map(segmenter, torch.rand(3, 45, 70), options)
    assert odd.shape == (45, 70)


def test_several_scales_are_the_mean_of_their_probabilities():
    segmenter, image = small(), torch.rand(3, 32, 32)
    both = MapOptions(resize="none", scales=(1.0, 2.0))
    found = predict_map(segmenter, image, both)
    probs = []
    for scale in (1, 2):
        seen = F.interpolate(image[None], scale_factor=scale, mode="bilinear")
        whole = sliding.Windows(
            lambda x: segmenter(x, None, (LOGITS,)).taps[LOGITS],
            seen[0], tuple(seen.shape[2:]), (32, 32), both,
        )  # fmt: skip
        with torch.no_grad():
            logits = whole.rows(slice(0, 32 * scale))
        resized = F.interpolate(logits[None], (32, 32), mode="bilinear", align_corners=False)
        probs.append(resized.softmax(1))
    assert torch.equal(found.long(), sum(probs)[0].argmax(0))


def test_pixels_may_be_bytes():
    segmenter = small()
    pixels = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    found = [predict_map(segmenter, image, AS_IT_IS) for image in (pixels, pixels.float() / 255)]
    assert torch.equal(*found)


def test_windows_never_leave_gaps():
    with pytest.raises(UserError, match="A stride of 65 leaves gaps between windows of 64 pixels"):
        check_stride(MapOptions(stride=65), (96, 64))
    check_stride(MapOptions(stride=64), (96, 64))
    with pytest.raises(UserError, match="stride and window_batch have no effect"):
        MapOptions(mode="whole", stride=8)


def test_logits_that_are_not_finite_and_options_that_are_none():
    segmenter = small()
    torch.nn.init.constant_(segmenter.head.classify.conv.bias, torch.inf)
    with pytest.raises(NotFiniteError, match="The segmenter's logits are not finite"):
        predict_map(segmenter, torch.rand(3, 32, 32), MapOptions())
    for wrong in ({"scales": ()}, {"scales": (0.0,)}, {"stride": 0}):
        with pytest.raises(UserError):
            MapOptions(**wrong)
