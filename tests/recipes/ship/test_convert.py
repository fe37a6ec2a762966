"""``convert``: MAE's file from runs and files, read back as the same network."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import limbeck
from limbeck.errors import UserError
from limbeck.models.build import build_student
from limbeck.models.dense.build import build_segmenter
from limbeck.models.finished import save_student
from limbeck.models.options import SegmenterOptions, StudentOptions
from limbeck.models.origins.decoder import load_decoder
from limbeck.models.origins.load import load_encoder
from limbeck.recipes.ship.convert import ConvertConfig, check, convert, report
from tests.models.origins import writers

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
IDS_KEEP = torch.tensor([[4, 1, 15], [0, 5, 7]])


def run(source, out, **values):
    return convert(ConvertConfig(source=str(source), out=str(out), **values))


@pytest.mark.parametrize("name", ["mae.pth", "mae.safetensors"])
def test_an_encoder_there_and_back(teacher, tmp_path, name):
    done = run(teacher, tmp_path / name)
    encoder, read = limbeck.load(teacher), load_encoder(tmp_path / name)
    assert read.facts.num_heads == (4, 4, 4)  # of width 32, which tells nobody
    assert torch.equal(read(IMAGES).tokens, encoder(IMAGES).tokens)
    assert "Head counts 4: stated in the file." in read.facts.origin["notes"]
    said = report(done)
    assert f"the encoder in MAE's layout, {done.num_tensors} tensors" in said and "4 heads" in said


@pytest.mark.parametrize("name", ["mae.pth", "mae.safetensors"])
def test_a_run_with_its_decoder_there_and_back(teacher, tmp_path, name):
    run(teacher, tmp_path / name, layout="mae-full")
    tokens = load_encoder(tmp_path / name)(IMAGES, ids_keep=IDS_KEEP).tokens
    own = load_decoder(teacher)(limbeck.load(teacher)(IMAGES, ids_keep=IDS_KEEP).tokens, IDS_KEEP)
    assert torch.equal(load_decoder(tmp_path / name)(tokens, IDS_KEEP), own)


def test_the_file_is_as_published_and_needs_no_pickled_objects(tmp_path):
    weights = writers.mae_full(192, 96)
    save_file(weights, tmp_path / "a.safetensors")
    run(tmp_path / "a.safetensors", tmp_path / "b.pth", layout="mae-full")
    content = torch.load(tmp_path / "b.pth", weights_only=True)
    assert content["model"].keys() == weights.keys()
    assert all(torch.equal(content["model"][name], value) for name, value in weights.items())
    told = {"num_heads": "12", "decoder_num_heads": "3", "layout": "mae-full"}
    assert told.items() <= content["metadata"].items()
    run(tmp_path / "a.safetensors", tmp_path / "c.safetensors")
    with safe_open(tmp_path / "c.safetensors", "pt") as file:
        assert set(file.keys()) == writers.mae_encoder(192).keys()
        assert file.metadata()["num_heads"] == "12"


def test_head_counts_that_only_the_user_knows(tmp_path):
    save_file(writers.mae_full(), tmp_path / "a.safetensors")
    done = run(tmp_path / "a.safetensors", tmp_path / "b.pth", layout="mae-full", num_heads=8,
               decoder_num_heads=4)  # fmt: skip
    assert done.num_heads == 8
    assert load_encoder(tmp_path / "b.pth").facts.num_heads == (8, 8)
    assert load_decoder(tmp_path / "b.pth").decoder_blocks[0].attn.num_heads == 4


def test_a_student_with_an_adapted_block_and_without_decoder(student, tmp_path):
    with pytest.raises(UserError, match=r"its blocks differ in heads \(3, 4\), and --num-heads 3"):
        run(student, tmp_path / "a.pth")
    with pytest.raises(UserError, match="has no decoder; .*--method masked-pixel"):
        run(student, tmp_path / "a.pth", layout="mae-full")
    assert not list(tmp_path.iterdir())
    run(student, tmp_path / "a.pth", num_heads=3)
    read = load_encoder(tmp_path / "a.pth")
    own = limbeck.load(student)
    assert read.facts.num_heads == (3, 3)
    first = limbeck.Tap("tokens", 0)  # what comes before the adapted block is as it was
    size = (1, 3, *own.facts.img_size)
    images = torch.rand(size)
    assert torch.equal(
        read(images, taps=(first,)).taps[first], own(images, taps=(first,)).taps[first]
    )


def test_a_decoupled_decoder_is_no_mae(tmp_path):
    weights = writers.with_spare_block(writers.mae_full(192, 96))
    save_file(weights, tmp_path / "d2.safetensors")
    with pytest.raises(UserError, match="block 8 .D2-MAE.*convert it with --layout mae"):
        run(tmp_path / "d2.safetensors", tmp_path / "a.pth", layout="mae-full")
    run(tmp_path / "d2.safetensors", tmp_path / "a.pth")
    assert load_encoder(tmp_path / "a.pth").facts.depth == 2


def test_a_file_that_is_there_is_replaced_only_if_asked(teacher, tmp_path):
    out = tmp_path / "a.pth"
    out.write_bytes(b"mine")
    with pytest.raises(UserError, match="a.pth exists; .*--overwrite"):
        run(teacher, out)
    assert out.read_bytes() == b"mine"
    run(teacher, out, overwrite=True)
    assert load_encoder(out).facts.depth == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pth"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "run: limbeck convert SOURCE OUT.pth"),
        ({"source": "timm:vit_tyni", "out": "a.pth"}, "Did you mean 'vit_tiny'"),
        ({"source": ".", "out": "a.txt"}, "let it end in .pth"),
        ({"source": ".", "out": "no/a.pth"}, "There is no folder no"),
        ({"source": ".", "out": "a.pth", "decoder_num_heads": 3}, "no effect without --layout"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, values, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        check(ConvertConfig(**values))


def test_a_folder_of_that_name(tmp_path):
    (tmp_path / "a.pth").mkdir()
    with pytest.raises(UserError, match="a.pth is a folder"):
        check(ConvertConfig(source=str(tmp_path), out=str(tmp_path / "a.pth"), overwrite=True))


def test_a_segmenter_there_and_back(tmp_path):
    shape = "vit_tiny:img_size=32:patch_size=8:embed_dim=24:depth=3:num_heads=3"
    encoder = build_student(StudentOptions(name=shape), seed=0)
    segmenter = build_segmenter(encoder, 5, SegmenterOptions(head="upernet"), 0)
    save_student(segmenter, tmp_path / "run", {})
    done = run(tmp_path / "run", tmp_path / "segmenter.pth", layout="segmenter")
    assert (done.num_heads, done.left_out) == (None, ())
    assert "a segmenter in its authors' layout" in report(done)
    again = load_encoder(tmp_path / "segmenter.pth").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in segmenter.state_dict().items())
    save_student(encoder, tmp_path / "plain", {})
    with pytest.raises(UserError, match="is no segmenter; choose --layout mae"):
        run(tmp_path / "plain", tmp_path / "other.pth", layout="segmenter")
