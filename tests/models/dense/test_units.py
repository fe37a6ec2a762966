"""Units: batch norm over all processes, group norm of any width, classes in float32."""

from pathlib import Path

import pytest
import torch
from torch import nn

from limbeck.engine.distributed import ranks_session
from limbeck.errors import UserError
from limbeck.models.dense.units import Classify, SyncedBatchNorm, Unit, make_norm, resize
from tests.processes import start_ranks


def test_alone_it_is_torch_s_batch_norm():
    own, usual = SyncedBatchNorm(3), nn.BatchNorm2d(3)
    for x in torch.randn(2, 4, 3, 5, 5):
        assert torch.equal(own(x), usual(x))
    assert own.state_dict().keys() == usual.state_dict().keys()
    assert all(torch.equal(v, usual.state_dict()[k]) for k, v in own.state_dict().items())


def four_images():
    return torch.linspace(-1, 2, 4 * 3 * 4).view(4, 3, 2, 2).sin().requires_grad_()


def _three_of_them_and_one(folder: Path) -> None:
    with ranks_session("cpu") as ranks:
        norm, x = SyncedBatchNorm(3), four_images()
        part = slice(0, 3) if ranks.is_main else slice(3, 4)
        (norm(x[part]) ** 3).sum().backward()
        found = norm.state_dict() | {"x": x.grad[part], "grad": norm.weight.grad}
        torch.save(found, folder / f"{ranks.rank}.pt")


def test_two_processes_have_the_statistics_of_both(tmp_path):
    usual, x = nn.BatchNorm2d(3), four_images()
    (usual(x) ** 3).sum().backward()
    pair = start_ranks(_three_of_them_and_one, tmp_path, folder=tmp_path, count=2)
    done = [started.end() for started in pair]
    assert [each.returncode for each in done] == [0, 0], done
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, value in usual.state_dict().items():
        torch.testing.assert_close(first[name], value)
        torch.testing.assert_close(second[name], value)
    torch.testing.assert_close(torch.cat((first["x"], second["x"])), x.grad)
    torch.testing.assert_close(first["grad"] + second["grad"], usual.weight.grad)


def test_one_image_is_too_few_for_a_batch():
    with pytest.raises(UserError, match="micro-batches of one image.*set segmenter.norm .* group"):
        Unit(4, 8, 1, "batch")(torch.rand(1, 4, 1, 1))
    assert Unit(4, 8, 1, "batch").eval()(torch.rand(1, 4, 1, 1)).shape == (1, 8, 1, 1)


@pytest.mark.parametrize(("channels", "groups"), [(192, 32), (48, 16), (8, 8), (7, 1)])
def test_groups_divide_any_width(channels, groups):
    assert make_norm("group", channels).num_groups == groups


def test_a_unit_gives_no_negative_values_and_keeps_the_size():
    assert Unit(4, 8, 5, "batch")(torch.randn(2, 4, 6, 7)).shape == (2, 8, 6, 7)
    assert Unit(4, 8, 3, "group")(torch.randn(2, 4, 6, 7)).min() == 0


def test_classes_are_not_computed_in_bfloat16():
    with torch.autocast("cpu", torch.bfloat16):
        assert Classify(4, 3, 0.1)(torch.randn(1, 4, 2, 2).bfloat16()).dtype == torch.float32


def test_whole_channels_are_dropped_in_training_alone():
    classify = Classify(64, 64, 0.5)
    nn.init.dirac_(classify.conv.weight)
    x = torch.ones(1, 64, 3, 3)
    assert torch.equal(classify.eval()(x), x)
    dropped = classify.train()(x)[0].flatten(1)
    assert (dropped == dropped[:, :1]).all() and 0 < (dropped[:, 0] == 0).sum() < 64


def test_resize_leaves_what_fits():
    x = torch.rand(1, 2, 3, 4)
    assert resize(x, (3, 4)) is x and resize(x, (6, 8)).shape == (1, 2, 6, 8)
