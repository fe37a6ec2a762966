import pytest
import timm
import torch
from torch import nn

from limbeck.engine.optim import Average, build_optimizer, param_groups, set_lr
from limbeck.engine.options import OptimOptions
from limbeck.errors import UserError
from limbeck.models.build import build_student
from limbeck.models.options import StudentOptions
from limbeck.recipes.run.options import FinetuneConfig
from tests.engine.fakes import TinyModule
from tests.models.families import FAMILIES, small_encoder


def vit_base_layer_id(name: str) -> int:
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return 0 if name.startswith(("patch_embed", "cls_token", "pos_embed")) else 13


def test_groups_of_fine_tuning_vit_base():
    """Golden number 10: (undecayed, decayed) tensors are 3, 1 / 8, 4 each / 3, 1."""
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", global_pool="avg")
    options = OptimOptions(layer_decay=0.65, no_decay_names=("pos_embed", "cls_token"))
    groups = param_groups(model, options, vit_base_layer_id, 12)
    assert len(groups) == 28
    sizes = [len(group["params"]) for group in groups]
    assert sizes == [3, 1] + [8, 4] * 12 + [3, 1]
    assert [group["weight_decay"] for group in groups] == [0.0, 0.05] * 14
    assert [group["lr_scale"] for group in groups[::2]] == [0.65 ** (13 - i) for i in range(14)]


def test_groups_of_pretraining_vit_base():
    """Golden number 9: 99 undecayed tensors and 50 decayed ones, cls_token among these."""
    with torch.device("meta"):
        student = build_student(StudentOptions(name="vit_base"), seed=0)
    undecayed, decayed = (group["params"] for group in param_groups(student, OptimOptions()))
    assert (len(undecayed), sum(p.numel() for p in undecayed)) == (99, 122_112)
    assert (len(decayed), sum(p.numel() for p in decayed)) == (50, 85_525_248)


def test_groups_of_pretraining_leave_out_what_is_frozen():
    module = TinyModule()
    module.stem.requires_grad_(False)
    groups = param_groups(module, OptimOptions())
    assert [len(group["params"]) for group in groups] == [3, 1]
    assert [group["lr_scale"] for group in groups] == [1.0, 1.0]


def test_last_names_decide_about_decay():
    module = nn.ModuleDict({"pos_embed": nn.Linear(2, 2, bias=False)})
    module.register_parameter("pos_embed_extra", nn.Parameter(torch.zeros(2, 2)))
    groups = param_groups(module, OptimOptions(no_decay_names=("pos_embed",)))
    assert [group["weight_decay"] for group in groups] == [0.05]
    groups = param_groups(module, OptimOptions(no_decay_names=("weight",)))
    assert [group["weight_decay"] for group in groups] == [0.0, 0.05]


@pytest.mark.parametrize("family", FAMILIES)
def test_fine_tuning_decays_no_positions_and_no_tokens_of_any_family(family):
    """Decayed are matrices, and of what is no layer's weight a BEiT's or a Swin's tables alone."""
    encoder = small_encoder(family)
    options = FinetuneConfig().optim
    groups = param_groups(encoder, options, encoder.layer_id, encoder.facts.depth)
    group_of = {id(p): group for group in groups for p in group["params"]}
    first = min(group["lr_scale"] for group in groups)
    for name, parameter in encoder.named_parameters():
        last, group = name.rpartition(".")[2], group_of[id(parameter)]
        tables = ("relative_position_bias_table", "latent")
        is_decayed = parameter.ndim > 1 and last in ("weight", *tables)
        assert (group["weight_decay"] > 0) == is_decayed, name
        if last in ("cls_token", "reg_token", "pos_embed", "pos_embed_win", "freqs"):
            assert group["lr_scale"] == first, name
        if last == "dist_token":  # G2SD's learns with the heads, and a segmenting TinyMIM*'s
            with_heads = family in ("distilled-last", "tinymim-star-rel-pos")
            assert group["lr_scale"] == (1.0 if with_heads else first)


def test_lr_is_scaled_in_every_group():
    module = TinyModule()
    options = OptimOptions(layer_decay=0.5)
    optimizer = build_optimizer(module, options, lambda name: int("stem" not in name), 1)
    set_lr(optimizer, 0.8)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.2, 0.4, 0.4]


def test_what_comes_after_the_blocks_has_a_factor_of_its_own():
    module = TinyModule()
    options = OptimOptions(layer_decay=0.5, head_lr_scale=0.25)
    groups = param_groups(module, options, lambda name: 0 if "stem" in name else 2, 1)
    assert [group["lr_scale"] for group in groups] == [0.25, 0.25, 0.25, 0.25]
    groups = param_groups(module, options, lambda name: 0 if "stem" in name else 1, 1)
    assert [group["lr_scale"] for group in groups] == [0.25, 0.25, 0.5, 0.5]
    with pytest.raises(UserError, match="head_lr_scale has no effect without layer_decay"):
        OptimOptions(head_lr_scale=0.5)


def test_one_step_is_adamw():
    """Decoupled decay and a first step of lr * sign(gradient), by the formula."""
    module = nn.Linear(3, 2)
    start = module.weight.detach().clone()
    optimizer = build_optimizer(module, OptimOptions(weight_decay=0.1))
    set_lr(optimizer, 0.01)
    (module(torch.ones(1, 3)).sum()).backward()
    optimizer.step()
    # rtol: eps 1e-8 beside a gradient of 1, in float32
    torch.testing.assert_close(module.weight, start * (1 - 0.01 * 0.1) - 0.01, rtol=1e-5, atol=1e-7)


def test_sgd_is_nesterov_with_torch_s_weight_decay():
    """g' = g + wd w, m = 0.9 m + g', w -= lr (g' + 0.9 m): two steps by the formula."""
    module = nn.Linear(3, 2, bias=False)
    expected, momentum = module.weight.detach().clone(), torch.zeros(2, 3)
    optimizer = build_optimizer(module, OptimOptions(optimizer="sgd", weight_decay=0.1))
    set_lr(optimizer, 0.5)
    for scale in (1.0, 3.0):
        optimizer.zero_grad()
        (scale * module(torch.ones(1, 3)).sum()).backward()
        optimizer.step()
        gradient = scale + 0.1 * expected
        momentum = 0.9 * momentum + gradient
        expected = expected - 0.5 * (gradient + 0.9 * momentum)
    torch.testing.assert_close(module.weight.detach(), expected)


@pytest.mark.parametrize(
    ("decay", "scales"),
    [
        (0.85, {0: 0.12090549, 1: 0.14224176, 6: 0.32057709, 11: 0.7225, 12: 0.85, 13: 1.0}),
        (0.75, {0: 0.02375726, 1: 0.03167635, 6: 0.13348389, 12: 0.75}),
    ],
)
def test_groups_of_mae_lites_fine_tuning(decay, scales):
    """Golden number 10 of ViT-Tiny's 14 groups; the peak, the floor and all are scaled alike."""
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", global_pool="avg")
    options = OptimOptions(layer_decay=decay, no_decay_names=("pos_embed", "cls_token"))
    optimizer = build_optimizer(model, options, vit_base_layer_id, 12)
    assert len(optimizer.param_groups) == 28
    for lr in (4e-3, 1e-6):
        set_lr(optimizer, lr)
        for layer, scale in scales.items():
            for group in optimizer.param_groups[2 * layer : 2 * layer + 2]:
                assert group["lr"] == pytest.approx(lr * scale, abs=6e-9 * lr)


def test_average_follows_its_formula():
    module = nn.Linear(2, 2)
    average = Average(module, 0.2)
    expected = module.weight.detach().clone()
    for step in range(5):
        with torch.no_grad():
            module.weight.add_(1.0)
        average.update(step)
        decay = min(0.2, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    torch.testing.assert_close(average.state_dict()["weight"], expected)
    own = module.weight.detach().clone()
    with average.in_module():
        torch.testing.assert_close(module.weight.detach(), expected)
    assert torch.equal(module.weight, own)
    average.copy_to_module()
    torch.testing.assert_close(module.weight.detach(), expected)


def test_all_of_a_module_can_be_decayed():
    module = nn.Linear(2, 2)
    (group,) = param_groups(module, OptimOptions(weight_decay=0.1, decay_all=True))
    assert group["weight_decay"] == 0.1 and len(group["params"]) == 2


def test_layers_can_be_counted_by_blocks():
    """The embedding has the first block's factor, and the head the last one's, which is 1."""
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", global_pool="avg")
    options = OptimOptions(layer_decay=0.5, layer_decay_count="blocks")
    groups = param_groups(model, options, vit_base_layer_id, 12)
    assert [group["lr_scale"] for group in groups[::2]] == [0.5 ** (11 - b) for b in range(12)]
    sizes = [len(group["params"]) for group in groups]
    # Tokens, positions and patches are with the first block, norm and classifier with the last.
    assert (sizes[:2], sizes[-2:]) == ([9, 7], [11, 5])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"layer_decay_count": "blocks"}, "layer_decay_count has no effect without layer_decay"),
        (
            {"layer_decay_count": "blocks", "layer_decay": 0.8, "head_lr_scale": 0.5},
            "a head that is a layer of its own",
        ),
        ({"warmup_lr": 1e-6, "warmup_epochs": 0}, "have no effect without warm-up"),
        ({"cosine_from": "start", "warmup_epochs": 0}, "have no effect without warm-up"),
        ({"drop_at": (0.5,)}, "drop_at is of optim.schedule steps"),
        ({"schedule": "steps"}, "drop_at is of optim.schedule steps"),
        (
            {"schedule": "steps", "drop_at": (0.5,), "cosine_from": "start"},
            "no effect on schedule steps",
        ),
    ],
)
def test_options_of_the_schedule_without_effect(values, said):
    with pytest.raises(UserError, match=said):
        OptimOptions(**values)
