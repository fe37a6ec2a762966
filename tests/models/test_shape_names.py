"""Names that say a shape: read, written, refused, and told from sources."""

import pytest

from limbeck.config import from_plain
from limbeck.errors import UserError
from limbeck.models.options import StudentOptions
from limbeck.models.shape_names import is_shape, join_shape, split_shape

TINY = (
    "tiny_vit_21m:embed_dims=64-128-160-320:depths=2-2-6-2:window_sizes=7-7-14-7:head_dim=32"
    ":mlp_ratio=3.5:mbconv_expand_ratio=4"
)


def test_a_name_is_read_into_the_options_and_written_again():
    options = StudentOptions(name=TINY)
    assert options.name == "tiny_vit_21m"
    assert options.embed_dims == (64, 128, 160, 320) and options.depths == (2, 2, 6, 2)
    assert options.mlp_ratio == 3.5 and options.head_dim == 32
    assert StudentOptions(name=options.text) == options
    assert from_plain(StudentOptions, {"name": TINY}, "test") == options


def test_options_and_name_say_the_same():
    named = StudentOptions(name="vit_small:embed-dim=192:depth=10", num_heads=3)
    assert named == StudentOptions(name="vit_small", embed_dim=192, depth=10, num_heads=3)
    assert named.text == "vit_small:embed_dim=192:depth=10:num_heads=3"
    assert join_shape("vit_tiny", {"depth": None}) == "vit_tiny"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "vit_tiny:depth=2:depht=3"}, "no option 'depht'. Did you mean 'depth'"),
        ({"name": "vit_tiny:depth=2:weights=a"}, "no option 'weights'"),
        ({"name": "vit_tiny:depth=2:depth=3"}, "depth is stated twice"),
        ({"name": "vit_tiny:depth=2", "depth": 3}, "'vit_tiny:depth=2' and student.depth state"),
        ({"name": "vit_tiny:depth=2:six"}, "'six' is not OPTION=VALUE"),
        ({"name": "vit_tiny:depth=ten"}, "depth = 'ten' is refused"),
        ({"name": "tiny_vit_5m:depths=2-2"}, "depths"),
    ],
)
def test_wrong_names_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        StudentOptions(**values)


@pytest.mark.parametrize("source", ["timm:vit_tiny", "hf:owner/name@main", "vit_tiny", "a=b/run"])
def test_sources_are_no_shapes(source):
    assert not is_shape(source)


def test_words_of_several_numbers():
    assert split_shape("a:b=1-2:c=3") == ("a", {"b": ["1", "2"], "c": "3"})
