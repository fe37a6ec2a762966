import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.origins import layouts
from limbeck.models.vit import build_encoder
from tests.models.origins import writers

NORM = {"mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("mae_encoder", writers.mae_encoder()),
        ("mae_full", writers.mae_full()),
        ("fine_tuned", writers.fine_tuned()),
        ("tinymim", writers.tinymim()),
        ("tinymim_tstar", writers.tinymim_tstar()),
        ("dinov2", writers.dinov2()),
        ("dinov2", writers.dinov2(num_registers=4)),
        ("timm_vit", writers.draw(writers.encoder_shapes(32))),
    ],
)
def test_each_published_layout_is_recognised(name, weights):
    assert layouts.recognise(weights).name == name


def test_weights_that_were_never_trained_are_not_taken_for_tinymim():
    weights = writers.tinymim()
    for name in weights:
        if "norm" in name:
            weights[name].fill_(1.0 if name.endswith("weight") else 0.0)
    assert layouts.recognise(weights).name == "mae_encoder"


def test_unknown_names_are_listed_with_their_count():
    weights = {f"layer{index:02d}.w": torch.zeros(1) for index in range(25)}
    with pytest.raises(UserError, match=r"These 25 tensors .*layer00\.w.*layer19\.w and 5 more"):
        layouts.recognise(weights)


# Parameter counts: TinyMIM sheet 3.1, 3.2 and golden number 9. Tensor counts: sheet 3.2, 3.4.
@pytest.mark.parametrize(
    ("width", "depth", "num_tensors", "num_parameters"),
    [
        (192, 12, 150, 5_524_416),
        (384, 12, 150, 21_665_664),
        (768, 12, 150, 85_798_656),
        (1024, 24, 294, 303_301_632),
    ],
)
def test_real_sizes_have_the_known_counts(width, depth, num_tensors, num_parameters):
    shapes = writers.encoder_shapes(width, depth=depth, patch=16, side=14)
    # Expanded zeros take no memory.
    weights = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    layout = layouts.recognise(weights)
    assert (layout.name, len(weights)) == ("mae_encoder", num_tensors)
    shape = layouts.read_shape(weights)
    assert shape.img_size == (224, 224)
    heads, _ = layouts.find_heads(layout, width, depth, None)
    assert heads == (width // 64,) * depth
    architecture = layouts.to_architecture(shape, heads, img_size=shape.img_size)
    with torch.device("meta"):
        model = build_encoder(architecture | NORM).model
    assert sum(value.numel() for value in model.parameters()) == num_parameters
    assert {n: tuple(v.shape) for n, v in model.state_dict().items()} == shapes


@pytest.mark.parametrize(("width", "heads"), [(192, (6, 12)), (384, (6, 12)), (768, (12, 16))])
def test_tinymim_files_get_the_heads_they_were_trained_with(width, heads):
    layout = next(layout for layout in layouts.LAYOUTS if layout.name == "tinymim")
    counts, known_from = layouts.find_heads(layout, width, 12, None)
    assert counts == (heads[0],) * 11 + (heads[1],)
    assert "TinyMIM" in known_from
    assert layouts.find_heads(layout, width, 12, 3)[0] == (3,) * 12
    with pytest.raises(UserError, match="2 entries for 12 blocks"):
        layouts.find_heads(layout, width, 12, (3, 4))


def test_an_unusual_width_asks_for_num_heads():
    with pytest.raises(UserError, match="width of 100 .*--teacher.num-heads"):
        layouts.find_heads(layouts.LAYOUTS[0], 100, 12, None)


def test_other_than_square_grids_need_the_image_size():
    weights = writers.mae_encoder()
    weights["pos_embed"] = torch.zeros(1, 1 + 2 * 6, 32)
    with pytest.raises(UserError, match=r"13 rows .*img_size=\(height, width\)"):
        layouts.read_shape(weights)
    assert layouts.read_shape(weights, (16, 48)).grid == (2, 6)


@pytest.mark.parametrize(("hidden", "width"), [(768, 192), (2048, 768), (1000, 301), (515, 192)])
def test_mlp_ratio_survives_the_rounding_of_timm(hidden, width):
    assert int(width * layouts.to_ratio(hidden, width)) == hidden


@pytest.mark.parametrize("kwargs", [{"qk_norm": True}, {"init_values": 1e-4, "reg_tokens": 3},
                                    {"class_token": False, "global_pool": "", "qkv_bias": False},
                                    {"no_embed_class": True}, {"global_pool": "avg"},
                                    {"reg_tokens": 2, "no_embed_class": True}])  # fmt: skip
def test_shapes_are_read_back_from_any_timm_vit(kwargs):
    shape = {"img_size": 24, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4,
             "num_classes": 3, "mlp_ratio": 2.5}  # fmt: skip
    architecture = {"kind": "timm", "name": "vit_base_patch16_224", "kwargs": shape | kwargs}
    own = build_encoder(architecture | NORM).model.state_dict()
    read = layouts.to_architecture(layouts.read_shape(own), (4, 4), img_size=(24, 24))
    again = build_encoder(read | NORM).model.state_dict()
    assert {n: v.shape for n, v in again.items()} == {n: v.shape for n, v in own.items()}
