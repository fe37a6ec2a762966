"""Contractions: the published shapes are reached, each step is smaller, nothing gets impossible."""

import pytest

from limbeck.models.contraction import WIDTH, contract, factors_of
from limbeck.models.options import StudentOptions
from limbeck.models.whole_shape import build_outline, whole_shape

PUBLISHED = {
    "21m": (96, 192, 384, 576),
    "11m": (64, 128, 256, 448),
    "5m": (64, 128, 160, 320),
}  # arXiv 2207.10666, gamma_D


def walk(shape, target):
    """The steps by which ``contract`` leads to a target's widths, or as near as they go."""
    steps = []
    while shape.embed_dims != target:
        smaller = {factor: contract(shape, factor) for factor in factors_of(shape)}
        nearer = [
            (factor, each)
            for factor, each in smaller.items()
            if each is not None
            and each != shape
            and all(own >= aim for own, aim in zip(each.embed_dims, target, strict=True))
            and (each.depths, each.window_sizes, each.head_dim, each.mlp_ratio,
                 each.mbconv_expand_ratio) ==
            (shape.depths, shape.window_sizes, shape.head_dim, shape.mlp_ratio,
             shape.mbconv_expand_ratio)
        ]  # fmt: skip
        factor, shape = nearer[-1]
        steps.append(factor)
    return shape, steps


def test_the_published_shapes_are_reached_one_step_after_the_other():
    shape = whole_shape(StudentOptions(name="tiny_vit_21m"))
    assert shape.embed_dims == PUBLISHED["21m"]
    for size in ("11m", "5m"):
        shape, steps = walk(shape, PUBLISHED[size])
        assert steps and all(step.startswith(("embed_dims.", WIDTH)) for step in steps)
        own = whole_shape(StudentOptions(name=f"tiny_vit_{size}"))
        assert shape == StudentOptions(**vars(own) | {"name": "tiny_vit_21m"})
        weights = build_outline(shape).model.state_dict()
        expected = build_outline(own).model.state_dict()
        assert {n: v.shape for n, v in weights.items()} == {n: v.shape for n, v in expected.items()}


TINY = StudentOptions(
    name="tiny_vit_5m:img_size=64:embed_dims=32-64-64-96:depths=1-1-2-1:window_sizes=7-8-4-2"
    ":head_dim=16:mlp_ratio=2:mbconv_expand_ratio=2"
)
PLAIN = StudentOptions(
    name="vit_tiny:img_size=32:patch_size=8:embed_dim=48:depth=2:num_heads=4:mlp_ratio=2"
)


@pytest.mark.parametrize("shape", [TINY, PLAIN], ids=["stages", "plain"])
def test_every_contraction_can_be_built_and_only_its_factor_changes(shape):
    params = sum(p.numel() for p in build_outline(shape).model.parameters())
    for factor in factors_of(shape):
        steps = 1
        while (smaller := contract(shape, factor, steps)) is not None:
            model = build_outline(smaller).model
            if factor not in ("head_dim", "num_heads") and "window" not in factor:
                assert sum(p.numel() for p in model.parameters()) < params
            changed = {name for name in vars(shape) if vars(shape)[name] != vars(smaller)[name]}
            assert changed <= {factor.partition(".")[0], "embed_dims", "embed_dim", "num_heads"}
            assert changed
            steps += 1
        assert steps <= 12


@pytest.mark.parametrize(
    ("factor", "changes"),
    [
        ("width", {"embed_dims": (32, 48, 48, 80)}),
        ("embed_dims.0", {"embed_dims": (16, 64, 64, 96)}),
        ("embed_dims.2", None),  # stage 2 would be wider than stage 3
        ("embed_dims.3", {"embed_dims": (32, 64, 64, 80)}),
        ("depths.2", {"depths": (1, 1, 1, 1)}),
        ("depths.3", None),
        ("window_sizes.1", {"window_sizes": (7, 4, 4, 2)}),
        ("window_sizes.2", {"window_sizes": (7, 8, 2, 2)}),
        ("window_sizes.3", None),
        ("mbconv_expand_ratio", {"mbconv_expand_ratio": 1}),
        ("mlp_ratio", {"mlp_ratio": 1.5}),
        ("head_dim", {"head_dim": 8}),
    ],
)
def test_the_steps_of_a_tiny_vit(factor, changes):
    expected = changes and StudentOptions(**vars(TINY) | changes)
    assert contract(TINY, factor) == expected


@pytest.mark.parametrize(
    ("factor", "steps", "changes"),
    [
        ("width", 1, {"embed_dim": 36, "num_heads": 3}),
        ("width", 4, None),
        ("depth", 1, {"depth": 1}),
        ("depth", 2, None),
        ("num_heads", 1, {"num_heads": 3}),
        ("num_heads", 3, {"num_heads": 1}),
        ("mlp_ratio", 2, {"mlp_ratio": 1.0}),
        ("mlp_ratio", 3, None),
    ],
)
def test_the_steps_of_a_plain_vit(factor, steps, changes):
    expected = changes and StudentOptions(**vars(PLAIN) | changes)
    assert contract(PLAIN, factor, steps) == expected


def test_width_keeps_the_proportions_over_many_steps():
    shape = StudentOptions(**vars(TINY) | {"embed_dims": (48, 96, 192, 288)})
    assert contract(shape, WIDTH, 6).embed_dims == (32, 64, 128, 192)


def test_a_plain_width_is_one_that_the_table_of_positions_can_have():
    shape = StudentOptions(**vars(PLAIN) | {"embed_dim": 72, "num_heads": 4})
    assert contract(shape, WIDTH).embed_dim == 36  # not 54, which 4 does not divide
