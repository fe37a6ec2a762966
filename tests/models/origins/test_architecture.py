import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.origins import architecture as arch
from limbeck.models.origins import layouts
from limbeck.models.vit import build_encoder
from tests.models.origins import writers

NORM = {"mean": [0.5] * 3, "std": [0.5] * 3}


# Parameter and tensor counts of the published files.
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
    shape = arch.read_shape(weights)
    assert shape.img_size == (224, 224)
    heads, _ = layouts.find_heads(layout, width, depth, None)
    assert heads == (width // 64,) * depth
    architecture = arch.to_architecture(shape, heads, img_size=shape.img_size)
    with torch.device("meta"):
        model = build_encoder(architecture | NORM).model
    assert sum(value.numel() for value in model.parameters()) == num_parameters
    assert {n: tuple(v.shape) for n, v in model.state_dict().items()} == shapes


def test_other_than_square_grids_need_the_image_size():
    weights = writers.mae_encoder()
    weights["pos_embed"] = torch.zeros(1, 1 + 2 * 6, 32)
    with pytest.raises(UserError, match=r"13 rows .*img_size=\(height, width\)"):
        arch.read_shape(weights)
    assert arch.read_shape(weights, (16, 48)).grid == (2, 6)


@pytest.mark.parametrize(("hidden", "width"), [(768, 192), (2048, 768), (1000, 301), (515, 192)])
def test_mlp_ratio_survives_the_rounding_of_timm(hidden, width):
    assert int(width * arch.to_ratio(hidden, width)) == hidden


@pytest.mark.parametrize("kwargs", [{"qk_norm": True}, {"init_values": 1e-4, "reg_tokens": 3},
                                    {"class_token": False, "global_pool": "", "qkv_bias": False},
                                    {"no_embed_class": True}, {"global_pool": "avg"},
                                    {"reg_tokens": 2, "no_embed_class": True}])  # fmt: skip
def test_shapes_are_read_back_from_any_timm_vit(kwargs):
    shape = {"img_size": 24, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4,
             "num_classes": 3, "mlp_ratio": 2.5}  # fmt: skip
    architecture = {"kind": "timm", "name": "vit_base_patch16_224", "kwargs": shape | kwargs}
    own = build_encoder(architecture | NORM).model.state_dict()
    read = arch.to_architecture(arch.read_shape(own), (4, 4), img_size=(24, 24))
    again = build_encoder(read | NORM).model.state_dict()
    assert {n: v.shape for n, v in again.items()} == {n: v.shape for n, v in own.items()}
