import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.origins import architecture as arch
from limbeck.models.origins import layouts
from limbeck.models.origins.load import load_encoder
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


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_the_stated_size_goes_before_a_square(prefix):
    """16 patches: 4 x 4, 2 x 8, 8 x 2; class, distillation and register tokens with a position."""
    weights = writers.mae_encoder()
    tokens = {0: (), 1: ("cls_token",), 2: ("cls_token", "dist_token")}
    tokens[5] = ("cls_token", "reg_token")
    del weights["cls_token"]
    for name in tokens[prefix]:
        weights[name] = torch.zeros(1, 4 if name == "reg_token" else 1, 32)
    weights["pos_embed"] = torch.zeros(1, prefix + 16, 32)
    for size, grid in (((16, 64), (2, 8)), ((64, 16), (8, 2)), ((32, 32), (4, 4)), (None, (4, 4))):
        shape = arch.read_shape(weights, size)
        assert (shape.grid, shape.num_prefix_rows) == (grid, prefix)
        said = "as the image size states" if size else "a square, for a weights file does not"
        assert f"Positions of {grid[0]} x {grid[1]} patches" in arch.grid_note(shape, size)
        assert said in arch.grid_note(shape, size)
    assert arch.read_shape(weights, (48, 48)).grid == (4, 4)  # is to be interpolated
    assert "a square" in arch.grid_note(arch.read_shape(weights, (48, 48)), (48, 48))


def test_a_rectangle_s_positions_are_used_as_they_are(tmp_path):
    weights = writers.mae_encoder(192)
    torch.save(weights, tmp_path / "a.pth")
    encoder = load_encoder(tmp_path / "a.pth", img_size=(16, 64))
    assert encoder.facts.grid == (2, 8)
    assert torch.equal(encoder.model.pos_embed, weights["pos_embed"])
    assert "Positions of 2 x 8 patches, as the image size states." in encoder.facts.origin["notes"]
    square = load_encoder(tmp_path / "a.pth").facts
    assert square.grid == (4, 4) and "a square" in " ".join(square.origin["notes"])


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


@pytest.mark.parametrize(
    "name",
    [
        *("patch_embed.proj.weight", "pos_embed", "head.weight", "blocks.0.attn.qkv.weight"),
        "blocks.0.attn.relative_position_bias_table",
    ],
)
def test_what_tells_the_shape_has_one(name):
    weights = writers.with_relative(writers.fine_tuned(192))
    for wrong in (torch.tensor(1.0), torch.zeros([0] * weights[name].ndim), torch.zeros(2, 0)):
        with pytest.raises(UserError, match=f"whole ViT .{name} missing or of another form"):
            arch.read_shape(weights | {name: wrong})
    arch.read_shape(weights)
