import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.origins import layouts
from tests.models.origins import writers


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("mae_encoder", writers.mae_encoder()),
        ("mae_full", writers.mae_full()),
        ("fine_tuned", writers.fine_tuned()),
        ("tinymim", writers.tinymim()),
        ("tinymim_tstar", writers.tinymim_tstar()),
        ("g2sd_specific", writers.g2sd_specific()),
        ("dinov2", writers.dinov2()),
        ("dinov2", writers.dinov2(num_registers=4)),
        ("timm_vit", writers.draw(writers.encoder_shapes(32))),
    ],
)
def test_each_published_layout_is_recognised(name, weights):
    assert layouts.recognise(weights).name == name


@pytest.mark.parametrize(
    ("name", "program", "weights"),
    [
        ("mae_lite", layouts.MAE_LITE, writers.mae_full()),
        ("mae_lite_fine_tuned", layouts.MAE_LITE, writers.fine_tuned()),
        ("mae_lite_encoder", layouts.MAE_LITE, writers.mae_encoder()),
        ("moco_v3", layouts.MOCO_V3, writers.mae_encoder()),
    ],
)
def test_a_program_s_own_layouts_are_for_its_files_alone(name, program, weights):
    assert layouts.recognise(weights, program).name == name
    assert layouts.recognise(weights).program == ""


def test_a_count_that_the_file_states_comes_after_the_user_s():
    layout = layouts.LAYOUTS[0]
    assert layouts.find_heads(layout, 100, 2, None, told="4") == ((4, 4), "stated in the file")
    assert layouts.find_heads(layout, 100, 2, 5, told="4")[0] == (5, 5)
    with pytest.raises(UserError, match="width of 100"):
        layouts.find_heads(layout, 100, 2, None, told="many")


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


def test_two_tensors_of_one_name_are_refused():
    weights = writers.dinov2(num_registers=2) | {"reg_token": torch.zeros(1, 2, 32)}
    with pytest.raises(UserError, match="Two tensors would both be 'reg_token'"):
        layouts.recognise(weights).convert(weights)
