"""Every kind of network in every format says what it does in PyTorch, or a sentence why not."""

import pytest

from limbeck.errors import UserError
from limbeck.exports.formats import has_packages
from tests.exports.kinds import KINDS, NOT_OF_TIMM, compared, small


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in NOT_OF_TIMM])
def test_timm_alone_computes_the_same(kind, tmp_path):
    found, said = compared(small(kind), "timm", "fp32", tmp_path)
    assert found.relative.keys() == {"logits" if "logits" in found.relative else "tokens"}
    assert said["timm"]["call"].startswith("model = timm.create_model(")


@pytest.mark.parametrize("kind", sorted(NOT_OF_TIMM))
def test_what_timm_has_not_is_told(kind, tmp_path):
    with pytest.raises(UserError, match="timm has no .*choose --to onnx"):
        compared(small(kind), "timm", "fp32", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("to", ["onnx", "openvino"])  # both begin with torch's program
def test_all_others_hold_every_kind(to, kind, tmp_path):
    if not has_packages(to):
        pytest.skip("the extra export is not installed")
    compared(small(kind), to, "fp32", tmp_path)
