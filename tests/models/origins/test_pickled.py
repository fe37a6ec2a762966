"""Files of torch that are more than tensors: what they are is said, and nothing of them is run."""

import os
import pickle
import re
import zipfile

import pytest
import timm
import torch

from limbeck.errors import UserError
from limbeck.models.origins.files import read_weights
from limbeck.models.origins.pickled import read_pickle, read_program


class Runs:
    def __init__(self, call, *args):
        self.told = call, args

    def __reduce__(self):
        return self.told


class Own:
    pass


def model():
    return timm.models.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=24, depth=1, num_heads=2, num_classes=3
    )


@pytest.mark.parametrize(
    "how", [{}, {"pickle_protocol": 4}, {"_use_new_zipfile_serialization": False}]
)
@pytest.mark.parametrize(("call", "name"), [(os.system, "system"), (eval, "eval")])
def test_code_is_called_code_and_gets_no_line(tmp_path, how, call, name):
    torch.save({"x": Runs(call, f"open('{tmp_path}/MARK', 'w')")}, tmp_path / "a.pth", **how)
    with pytest.raises(UserError, match=rf"tries to run code when .*\.{name}") as caught:
        read_pickle(tmp_path / "a.pth")
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "MARK").exists()


def test_a_plain_pickle_with_code(tmp_path):
    (tmp_path / "a.pth").write_bytes(pickle.dumps(Runs(os.system, "true")))
    with pytest.raises(UserError, match="tries to run code"):
        read_pickle(tmp_path / "a.pth")


CONTENTS = {
    "a model": lambda: model(),
    "a model in a dictionary": lambda: {"epoch": 1, "model": model()},
    "a model among data parallel ones": lambda: torch.nn.DataParallel(model()),
    "tensors beside an object": lambda: {"state_dict": model().state_dict(), "best": Own()},
    "a model of one's own class": lambda: Wrapper(),
}


class Wrapper(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = model()


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("kind", CONTENTS)
def test_the_line_that_is_offered_works(tmp_path, kind, is_zip):
    file = tmp_path / "a.pth"
    torch.save(CONTENTS[kind](), file, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(UserError, match="whole pickled model|Python objects beside") as caught:
        read_pickle(file)
    code = re.search(r'python -c "(.*?)"', str(caught.value))[1]
    exec(code, {})
    weights, _ = read_weights(tmp_path / "a.weights.pth")
    assert weights.keys() == model().state_dict().keys()
    is_own = kind in ("tensors beside an object", "a model of one's own class")
    assert ("where Python finds the code of" in str(caught.value)) == is_own


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_gets_its_own_line(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 3)).save(str(tmp_path / "a.pt"))
    with pytest.raises(UserError, match="program of TorchScript") as caught:
        read_pickle(tmp_path / "a.pt")
    exec(re.search(r'python -c "(.*?)"', str(caught.value))[1], {})
    assert read_weights(tmp_path / "a.weights.pth")[0]["weight"].shape == (3, 2)


def test_a_bomb_is_not_inflated(tmp_path):
    torch.save({"a": torch.zeros(10**7)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as old,
        zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    with pytest.raises(UserError, match=r"unpacks to 40,.*fill the memory"):
        read_pickle(tmp_path / "a.pth")


def test_a_program_is_read_and_not_run():
    called, words, is_dict = read_program(pickle.dumps({"model": Own(), "x": Runs(eval, "1")}))
    assert called == {f"{__name__}.Own", "builtins.eval"}
    assert {"model", "x"} <= words
    assert is_dict
    assert read_program(b"\x80\x04\xff") == (set(), set(), False)
