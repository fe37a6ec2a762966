import subprocess
import sys

import pytest

from limbeck.errors import UserError
from limbeck.models.origins.names import check_source, split_source


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tim:vit_tiny", "no scheme 'tim:'. Did you mean 'timm'"),
        ("http://example.org/a.pth", "no scheme 'http:'"),
        ("timm:", "names no model; write timm:NAME"),
        ("hf:", "names no model; write hf:NAME"),
        ("timm:vit_tinny", "Did you mean 'vit_tiny'"),
        ("timm:vit_base_patch16_224.mea", "Did you mean 'mae'"),
        ("hf:a/b/c", "no name of a repository"),
        ("hf:two words", "no name of a repository"),
        ("vit_small", "Did you mean 'timm:vit_small_patch16_224'"),
        ("no_such_thing", "timm:NAME or hf:NAME"),
    ],
)
def test_a_source_that_can_not_be_meant_is_refused(source, message):
    with pytest.raises(UserError, match=message):
        check_source(source)


@pytest.mark.parametrize(
    "source",
    ["timm:vit_tiny", "timm:vit_base_patch16_224.mae", "hf:facebook/dinov2-base", "hf:a@b"],
)
def test_good_names_pass_without_asking_the_hub(source):
    check_source(source)


def test_a_mistyped_path_gets_the_nearest_sibling(tmp_path):
    (tmp_path / "mae_pretrain_vit_large.pth").touch()
    with pytest.raises(UserError, match="Did you mean 'mae_pretrain_vit_large.pth'"):
        check_source(str(tmp_path / "mae_pretrain_vit_larg.pth"))
    with pytest.raises(UserError, match="no_folder does not exist"):
        check_source(str(tmp_path / "no_folder" / "a.pth"))
    check_source(str(tmp_path / "mae_pretrain_vit_large.pth"))


def test_paths_with_colons_are_paths(tmp_path):
    file = tmp_path / "timm:a.pth"
    file.touch()
    assert split_source(str(file)) == (None, str(file))
    assert split_source("C:\\weights\\a.pth")[0] is None
    assert split_source("timm:a") == ("timm", "a")


def test_torch_is_not_imported():
    # In a process of its own: here torch has long been imported.
    code = (
        "import sys, limbeck.models.origins.names as n; n.check_source('timm:vit_tiny'); "
        "sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
