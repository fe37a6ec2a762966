"""Finished students: round trip, timm's own loading, atomic writing, and good errors."""

import ast
import json
import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import limbeck
from limbeck.errors import RunError, UserError
from limbeck.models.build import build_student
from limbeck.models.finished import (
    Keepsake,
    is_finished_student,
    load_kept,
    load_student,
    save_student,
    weight_hash,
)
from limbeck.models.heads import with_classifier
from limbeck.models.options import StudentOptions
from limbeck.models.origins.load import load_encoder
from limbeck.models.vit import wrap
from limbeck.records import Tap
from tests.models.families import small_encoder, small_images

SMALL = StudentOptions(
    name="vit_tiny", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2
)
RECORD = {
    "teacher": {"source": "timm:x", "licence": "MIT"},
    "data": {"fingerprint": "abc"},
    "versions": {"a": "1"},
}


@pytest.fixture
def student():
    encoder = build_student(SMALL, seed=0).eval()
    encoder.set_num_heads(-1, 4)
    return encoder


@pytest.fixture
def folder(student, tmp_path):
    save_student(student, tmp_path / "run", RECORD)
    return tmp_path / "run"


@pytest.mark.parametrize("part", ["", "student.json", "student.safetensors"])
def test_round_trip_from_the_folder_and_from_either_file(student, folder, part):
    loaded = load_student(folder / part)
    images = small_images()
    assert torch.equal(loaded(images).tokens, student(images).tokens)
    assert loaded.facts.num_heads == (2, 4)
    assert not loaded.training
    assert loaded.facts.architecture == student.facts.architecture
    assert loaded.facts.origin == {
        "source": str(folder),
        "weight_hash": weight_hash(student.model.state_dict()),
        **RECORD,
    }
    assert is_finished_student(folder / part)


@pytest.mark.parametrize("family", ["dinov3", "siglip", "deit-distilled", "beit", "hybrid"])
def test_round_trip_of_other_families(family, tmp_path):
    encoder = small_encoder(family)
    save_student(encoder, tmp_path, {})
    assert torch.equal(
        load_student(tmp_path)(small_images()).tokens, encoder(small_images()).tokens
    )


def test_a_tinymim_star_comes_back_and_names_no_call_of_timm(tmp_path):
    encoder = small_encoder("tinymim-star")
    save_student(encoder, tmp_path, {})
    assert json.loads((tmp_path / "student.json").read_text())["timm"] is None
    loaded, taps = load_student(tmp_path), (Tap("logits"), Tap("dist_logits"))
    for tap, value in encoder(small_images(), taps=taps).taps.items():
        assert torch.equal(loaded(small_images(), taps=taps).taps[tap], value)
    assert loaded.facts.architecture == encoder.facts.architecture


def test_timm_alone_loads_the_weights_and_computes_the_same(student, folder):
    record = json.loads((folder / "student.json").read_text())
    names = {"timm": timm}
    exec(record["timm"]["call"], names)
    model = names["model"].eval()
    model.load_state_dict(load_file(folder / "student.safetensors"), strict=True)
    assert len(record["timm"]["heads"]) == 1  # the adapted head count of the last block
    for path, values in record["timm"]["heads"].items():
        vars(model.get_submodule(path)).update(values)
    preprocessing = record["preprocessing"]
    mean, std = (torch.tensor(preprocessing[k]).view(3, 1, 1) for k in ("mean", "std"))
    tokens = model.forward_features((small_images() - mean) / std)
    torch.testing.assert_close(tokens, student(small_images()).tokens)


def test_the_record_says_everything(folder):
    record = json.loads((folder / "student.json").read_text())
    assert record["format"] == "limbeck-student" and record["format_version"] == 1
    assert record["architecture"]["num_heads"] == [2, 4]
    assert record["preprocessing"] == {
        "img_size": [32, 32],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bicubic",
        "crop_ratio": 0.875,
    }
    assert {key: record[key] for key in RECORD} == RECORD


def test_fine_tuned_students_keep_their_classifier(student, tmp_path):
    model = with_classifier(student, 5, "avg", seed=0)
    save_student(model, tmp_path, {}, interpolation="bilinear", crop_ratio=1.0)
    assert load_student(tmp_path).facts.num_classes == 5
    record = json.loads((tmp_path / "student.json").read_text())
    assert record["preprocessing"]["interpolation"] == "bilinear"
    assert record["preprocessing"]["crop_ratio"] == 1.0


def test_loading_needs_no_training_code():
    # The imports are read, not run: a new process would take seconds to import torch again.
    package = Path(limbeck.__file__).parent.parent
    waiting, seen = ["limbeck.models.finished"], set()
    while waiting:
        module = waiting.pop()
        file = package / (module.replace(".", "/") + ".py")
        if module in seen or not file.is_file():
            continue
        seen.add(module)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("limbeck"):
                waiting.append(node.module)
            elif isinstance(node, ast.Import):
                waiting.extend(name.name for name in node.names)
    assert "limbeck.models.vit" in seen
    ground = tuple(f"limbeck.{n}" for n in ("records", "errors", "files", "documents", "papers"))
    below = ("limbeck.models", "limbeck.ops", "limbeck.config", *ground)
    assert all(module.startswith(below) for module in seen), seen


def test_hash_follows_the_content_and_not_the_order():
    weights = {"a": torch.arange(4.0), "b": torch.tensor(1, dtype=torch.int64)}
    assert weight_hash(weights) == weight_hash(dict(reversed(weights.items())))
    assert weight_hash(weights) == weight_hash({k: v.clone() for k, v in weights.items()})
    others = [
        {**weights, "a": torch.arange(4.0) + 1},
        {**weights, "a": torch.arange(4.0).view(2, 2)},
        {**weights, "a": torch.arange(4.0).bfloat16()},
        {"c": weights["a"], "b": weights["b"]},
    ]
    assert len({weight_hash(other) for other in [weights, *others]}) == 5


def test_missing_and_foreign_files_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="no student.json in .*nowhere.*finished run"):
        load_student(tmp_path / "nowhere")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "student.json").write_text('{"format": "other"}')
    assert not is_finished_student(tmp_path / "foreign")
    (folder / "student.safetensors").rename(tmp_path / "foreign" / "student.safetensors")
    with pytest.raises(UserError, match="not the record of a finished student"):
        load_student(tmp_path / "foreign")
    with pytest.raises(UserError, match="no student.safetensors"):
        load_student(folder)
    assert not is_finished_student(folder)


def test_broken_files_are_refused(folder):
    record_file = folder / "student.json"
    record = record_file.read_text()
    record_file.write_text(record.replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(UserError, match="format version 2, newer .* update limbeck"):
        load_student(folder)
    record_file.write_text("{")
    assert not is_finished_student(folder)
    with pytest.raises(UserError, match="as JSON"):
        load_student(folder)
    record_file.write_text(record)
    (folder / "student.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="Can't read .* as safetensors"):
        load_student(folder)


def test_weights_that_do_not_match_are_listed(folder):
    file = folder / "student.safetensors"
    weights = load_file(file)
    other = {k: v for k, v in weights.items() if k != "norm.bias"}
    other |= {"extra": torch.zeros(1), "cls_token": torch.zeros(1, 1, 8)}
    save_file(other, file)
    with pytest.raises(
        UserError,
        match=r"missing: norm.bias; unexpected: extra; cls_token is \[1, 1, 8\] instead of "
        r"\[1, 1, 32\]",
    ):
        load_student(folder)
    save_file(weights | {"norm.bias": weights["norm.bias"] + 1}, file)
    with pytest.raises(UserError, match="another weight hash"):
        load_student(folder)


def test_an_interrupted_write_keeps_the_old_student(student, folder, monkeypatch):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(RunError, match="the disk is full. .* make room"):
        save_student(student, folder, {"data": "other"})
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_the_record_can_not_overwrite_the_students_own_entries(student, tmp_path):
    with pytest.raises(ValueError, match="may not set architecture"):
        save_student(student, tmp_path, {"architecture": {}})
    assert list(tmp_path.iterdir()) == []


def test_what_is_kept_beside_a_student_comes_back(tmp_path, student):
    kept = {"extra": Keepsake({"w": torch.rand(2, 3).T}, {"num_heads": 3})}
    save_student(student, tmp_path, {}, kept=kept)
    (name,) = load_kept(tmp_path)
    again = load_kept(tmp_path / "student.json")["extra"]
    assert name == "extra" and again.facts == {"num_heads": 3}
    assert torch.equal(again.weights["w"], kept["extra"].weights["w"])
    assert "kept" not in load_student(tmp_path).facts.origin
    save_file({"w": torch.zeros(3, 2)}, tmp_path / "extra.safetensors")
    with pytest.raises(UserError, match="extra.safetensors is not the file that student.json"):
        load_kept(tmp_path)
    (tmp_path / "extra.safetensors").unlink()
    with pytest.raises(UserError, match="There is no extra.safetensors"):
        load_kept(tmp_path)


def test_a_mask_token_beside_it_is_the_encoder_s(tmp_path, student):
    assert student.mask_token is None
    token = torch.randn(1, 1, student.facts.embed_dim)
    kept = {"mask_token": Keepsake({"mask_token": token})}
    save_student(student, tmp_path, {}, kept=kept)
    side = 2 * student.facts.img_size[0]
    for again in (load_student(tmp_path), load_encoder(tmp_path),
                  load_encoder(tmp_path, img_size=side)):  # fmt: skip
        assert torch.equal(again.mask_token, token)
    (tmp_path / "mask_token.safetensors").unlink()
    with pytest.raises(UserError, match="There is no mask_token.safetensors"):
        load_student(tmp_path)


def test_most_students_keep_nothing_beside_them(tmp_path, student):
    save_student(student, tmp_path, {})
    assert load_kept(tmp_path) == {}
    assert "kept" not in json.loads((tmp_path / "student.json").read_text())


@pytest.mark.parametrize("name", ["student.json", "student.safetensors"])
def test_a_file_that_is_gone_from_a_finished_run_has_a_way_on(folder, name):
    (folder / "finished.json").write_text("{}")
    (folder / name).unlink()
    for load in (load_student, load_encoder):
        with pytest.raises(UserError, match=f"its {name} is gone; put it back, or run"):
            load(folder)


def test_a_file_that_was_changed_is_found(student, tmp_path):
    kept = {"decoder": Keepsake({"a": torch.zeros(2)})}
    save_student(student, tmp_path, {}, kept=kept)
    save_file({"a": torch.ones(2)}, tmp_path / "decoder.safetensors")
    with pytest.raises(UserError, match=r"decoder.safetensors is not .* again, which writes it"):
        load_kept(tmp_path)


def change(folder, **entries):
    record = json.loads((folder / "student.json").read_text())
    (folder / "student.json").write_text(json.dumps(record | entries))


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b", "C:\\x", ""])
def test_what_is_kept_lies_in_the_folder(folder, name):
    change(folder, kept={name: {"weight_hash": "0" * 64, "facts": {}}})
    for load in (load_student, load_kept):
        with pytest.raises(UserError, match="no file of its folder"):
            load(folder)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"architecture": {"name": "hf-hub:someone/something"}}, "no vision Transformer of timm"),
        ({"architecture": {"kwargs": {"checkpoint_path": "/etc/passwd"}}}, "'checkpoint_path'"),
        ({"architecture": {"kwargs": {"embed_dim": 65536}}}, "norm.bias is .32. instead of .65536"),
        ({"architecture": {"kwargs": {"depth": 10**6}}}, "depth = 1000000"),
        ({"architecture": {"std": [0, 0, 0]}}, "'architecture.std.0' is 0"),
        ({"architecture": {"num_heads": "two"}}, "'architecture.num_heads'"),
        ({"format_version": "one"}, "'format_version'"),
        ({"weight_hash": 7}, "'weight_hash'"),
        ({"notes": "a note"}, "'notes'"),
        ({"kept": []}, "'kept'"),
        ({"student": {"student": 3}}, "'student.student'"),
    ],
)
def test_entries_of_a_record_are_of_their_kind(folder, entries, message):
    record = json.loads((folder / "student.json").read_text())
    if "architecture" in entries:
        own = record["architecture"]
        inner = dict(entries["architecture"])
        inner["kwargs"] = own["kwargs"] | inner.get("kwargs", {})
        entries = {"architecture": own | inner}
    change(folder, **entries)
    with pytest.raises(UserError, match=message):
        load_student(folder)


def test_a_student_with_nan_is_named(student, tmp_path):
    torch.nn.init.constant_(student.model.norm.weight, torch.nan)
    save_student(student, tmp_path, {})
    with pytest.raises(UserError, match=r"student\.safetensors .*'norm.weight' holds NaN"):
        load_student(tmp_path)


def block_of(file):
    """The lines in which timm alone loads a run."""
    blocks = (Path(__file__).parents[2] / file).read_text().split("```python\n")[1:]
    (block,) = (text for b in blocks if "timm.create_model" in (text := b.partition("```")[0]))
    return block


@pytest.mark.parametrize("last_heads", [None, 4, 8])
@pytest.mark.parametrize("pool", ["plain", "token", "avg"])
def test_timm_alone_by_the_lines_of_the_docs(tmp_path, monkeypatch, last_heads, pool):
    """For a teacher of the student's heads and of others, and not ImageNet's mean and std."""
    encoder = build_student(SMALL, seed=0)
    if pool != "plain":
        encoder = with_classifier(encoder, 3, pool, seed=0)
    if last_heads is not None:
        encoder.set_num_heads(-1, last_heads)
    norm = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    encoder = wrap(encoder.model, architecture=encoder.facts.architecture | norm, origin={})
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    save_student(encoder, tmp_path / "runs" / "mine", RECORD)
    monkeypatch.chdir(tmp_path)
    images = small_images()
    loaded = limbeck.load("runs/mine")
    lines = {block_of("docs/files.md")}
    if "blocks[11]" not in (of_readme := block_of("README.md")):
        lines.add(of_readme)
    for block in lines:
        names = {"images": images}
        exec(block, names)
        model = names["model"]
        assert not model.training
        torch.testing.assert_close(names["tokens"], loaded(images).tokens, atol=1e-5, rtol=1e-5)
        if pool != "plain":
            logits = loaded(images, taps=(Tap("logits"),)).taps[Tap("logits")]
            scaled = (images - names["mean"]) / names["std"]
            torch.testing.assert_close(model(scaled), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: (255 * x).to(torch.uint8), "are uint8, .* pass images.float.. / 255"),
        (lambda x: (255 * x).long(), "are int64"),
        (lambda x: 255 * x, "divide pixels by 255"),
        (lambda x: (x - 0.5) / 0.25, "from -2 to 2, .*leave the normalisation out"),
        (lambda x: 2.5 * x - 1, "leave the normalisation out"),
        (lambda x: x.masked_fill(x == 1, float("nan")), "Images have NaN among their values"),
        (lambda x: x.masked_fill(x == 1, float("inf")), "from 0 to inf"),
    ],
)
def test_images_that_can_not_be_meant_are_refused(folder, change, message):
    images = small_images().clamp(0.01, 0.99)
    images[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    encoder = limbeck.load(folder)
    for give in (lambda x: encoder(x), lambda x: encoder(images=x)):
        assert give(images).tokens.shape == give(1.2 * images - 0.1).tokens.shape
        with pytest.raises(UserError, match=message):
            give(change(images))
    encoder.train()
    if change(images).is_floating_point():  # disturbed views may leave 0..1
        encoder(change(images))
        load_student(folder)(change(images))
    else:
        with pytest.raises(UserError, match=message):
            encoder(change(images))


class TokensOf(torch.nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images):
        return self.encoder(images).tokens


def test_a_loaded_student_is_exported_without_the_check(folder):
    encoder = limbeck.load(folder)
    images = small_images()
    exported = torch.export.export(TokensOf(encoder), (images,)).module()
    torch.testing.assert_close(exported(images), encoder(images).tokens)
