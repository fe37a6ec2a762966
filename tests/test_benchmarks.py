"""The benchmarks run and compare like with like; their numbers are for a quiet machine."""

import re
from dataclasses import replace
from queue import SimpleQueue

import pytest
import torch

from benchmarks import (
    d_mae,
    detect,
    g2sd,
    masked,
    networks,
    relation,
    segment,
    soft_labels,
    step,
    stored_step,
    target_store,
    tokens,
)
from benchmarks.__main__ import main
from benchmarks.loader import mean_crop_areas
from benchmarks.photos import open_photos
from benchmarks.reference import plain_batches, plain_relation_loss
from benchmarks.timing import measure_peak_bytes, median_ratio, runs_well, take_turns
from limbeck.data.folder import FolderSource
from limbeck.engine import machine
from limbeck.methods.options import DecoderFeatureOptions
from limbeck.models.options import StudentOptions
from limbeck.ops.relations import relation_loss
from limbeck.ops.soft_labels import sparse_cross_entropies, top_k
from tests.data.images import write_photos


@pytest.fixture
def photos(tmp_path):
    write_photos(tmp_path, ["a.jpg", "b.jpg"])
    return FolderSource(tmp_path)


@pytest.fixture
def small(monkeypatch):
    """Both networks tiny and the images small."""
    monkeypatch.setattr(networks, "STUDENT", "vit_tiny")
    monkeypatch.setattr(networks, "TEACHER", "vit_tiny")
    for module in (step, tokens):
        monkeypatch.setattr(module, "BATCH_SIZE", 2)
    monkeypatch.setattr(step, "IMG_SIZE", 32)
    monkeypatch.setattr(tokens, "IMG_SIZES", (32,))


def test_loader_prints_the_ratio_and_crops_alike(tmp_path, photos, capsys):
    ours, plain = mean_crop_areas(photos, num_epochs=2000)
    assert ours == pytest.approx(plain, abs=0.02)  # four standard errors of 4000 draws
    main(["loader", "--data", str(tmp_path), "--repeats", "1"])
    assert re.search(r"\| 2 \| \d+ \| \d+ \| \d+\.\d\d \| 1.5 \|", capsys.readouterr().out)


def test_step_prints_every_reference(small, tmp_path, photos, capsys):
    main(["step", "--data", str(tmp_path), "--repeats", "1"])
    out = capsys.readouterr().out
    assert len(re.findall(r"\| \d+\.\d\d \| (2.0|1.1|) \|", out)) == len(step.ROWS)


def test_rows_in_bf16_are_left_out_where_it_is_slow(small, tmp_path, photos, capsys, monkeypatch):
    monkeypatch.setattr(machine, "product_seconds", lambda dtype: (1.0, 73.0))
    main(["step", "--data", str(tmp_path), "--repeats", "1"])
    out = capsys.readouterr().out
    assert len(re.findall(r"\| \d+\.\d\d \| (2.0|1.1|) \|", out)) == 1
    assert "| fp32 | fp32 |" in out and "bf16, teacher" not in out
    assert re.search(r"^## step \(.+; auto is fp32\)$", out, re.MULTILINE)
    assert runs_well(("fp32", "fp32", "1.1"))
    for row in (("bf16",), ("fp32", "bf16", ""), ("fp32", "fp32, teacher bf16", "")):
        assert not runs_well(row)


def test_tokens_prints_time_and_memory(small, tmp_path, photos, capsys):
    main(["tokens", "--data", str(tmp_path), "--repeats", "1"])
    assert re.search(r"\| 32 \| 5 \| .* \| [1-9]\d* \| [1-9]\d* \| ", capsys.readouterr().out)


def test_relation_prints_memory_and_time(monkeypatch, capsys):
    monkeypatch.setattr(relation, "SIZES", ((5, 2),))
    main(["relation", "--repeats", "1"])
    assert re.search(r"\| 5 \| 2 \| \d+\.\d \| \d+\.\d \| 1/", capsys.readouterr().out)


def test_d_mae_prints_every_reference(photos, tmp_path, capsys, monkeypatch):
    small = StudentOptions(name="vit_tiny", img_size=32, patch_size=8, depth=2)
    monkeypatch.setattr(d_mae, "STUDENT", small)
    monkeypatch.setattr(d_mae, "TEACHER", small)
    monkeypatch.setattr(d_mae, "IMG_SIZE", 32)
    monkeypatch.setattr(d_mae, "BATCH_SIZE", 2)
    main(["d_mae", "--data", str(tmp_path), "--repeats", "1"])
    assert len(re.findall(r"\| \d+\.\d\d \| (1.8|) \|", capsys.readouterr().out)) == len(d_mae.ROWS)
    monkeypatch.setattr(d_mae, "plain_d_mae_loss", lambda *_: torch.tensor(0.5))
    with pytest.raises(SystemExit, match="times do not compare"):
        d_mae.check_agreement(photos)


def test_g2sd_prints_both_stages(photos, tmp_path, capsys, monkeypatch):
    small = StudentOptions(
        name="vit_tiny", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3
    )
    decoder = {"decoder_embed_dim": 16, "decoder_depth": 4, "decoder_num_heads": 2}
    monkeypatch.setattr(g2sd, "STUDENT", small)
    monkeypatch.setattr(g2sd, "TEACHER", small)
    monkeypatch.setattr(g2sd, "TEACHER_DECODER", decoder)
    monkeypatch.setattr(g2sd, "OPTIONS", DecoderFeatureOptions(decoder_embed_dim=16))
    monkeypatch.setattr(g2sd, "IMG_SIZE", 32)
    stages = {name: replace(stage, batch_size=2) for name, stage in g2sd.STAGES.items()}
    monkeypatch.setattr(g2sd, "STAGES", stages)
    main(["g2sd", "--data", str(tmp_path), "--repeats", "1"])
    row = r"\| (\w+) \| .* \| (?:1.8|) \| (\d+\.\d) \| (\d+\.\d) \|"
    found = re.findall(row, capsys.readouterr().out)
    assert [stage for stage, *_ in found] == ["generic"] * 3 + ["specific"] * 3
    assert all(float(mib) > 0 for _, *both in found for mib in both)
    for name in ("plain_generic_loss", "plain_specific_loss"):
        monkeypatch.setattr(g2sd, name, lambda *_: torch.tensor(0.5))
    for stage in stages.values():
        with pytest.raises(SystemExit, match="times do not compare"):
            g2sd.check_agreement(photos, stage)


def test_masked_prints_every_share(capsys, monkeypatch):
    monkeypatch.setattr(masked, "IMG_SIZE", 32)
    monkeypatch.setattr(masked, "BATCH_SIZE", 1)
    monkeypatch.setattr(masked, "TEACHER", "vit_tiny")
    main(["masked", "--repeats", "1"])
    assert re.findall(r"\| (\d+)% \|", capsys.readouterr().out) == ["25", "50", "75", "100"]


def test_target_store_prints_every_way_of_reading(capsys, monkeypatch):
    monkeypatch.setattr(target_store, "SIZES", (600,))
    monkeypatch.setattr(target_store, "NUM_BATCHES", 2)
    main(["target_store", "--repeats", "1"])
    out = capsys.readouterr().out
    assert len(re.findall(r"\| 600 \| (plain|ours, [a-z ]+) \| [1-9]", out)) == 3
    assert re.search(r"A coded record has \d+ bytes; decoding 256 takes \d+\.\d ms", out)
    found = {name: target_store.Measured(1.0, 1.0, 1.0, digest=name) for name in "ab"}
    with pytest.raises(SystemExit, match="b reads something else: their times do not compare"):
        target_store.check_agreement(found)


def test_stored_step_prints_both_kinds_of_target(photos, tmp_path, capsys, monkeypatch):
    tiny = StudentOptions(name="vit_tiny", depth=2)
    monkeypatch.setattr(stored_step, "PAIRS", dict.fromkeys(stored_step.PAIRS, (tiny, tiny)))
    monkeypatch.setattr(stored_step, "ROWS", (stored_step.ROWS[0], stored_step.ROWS[-2]))
    monkeypatch.setattr(stored_step, "IMG_SIZE", 32)
    monkeypatch.setattr(stored_step, "BATCH_SIZE", 2)
    main(["stored_step", "--data", str(tmp_path), "--repeats", "1"])
    out = capsys.readouterr().out
    # 5 tokens of 192 channels, N (D + 2) + 4 D bytes.
    kib = f"{(5 * 194 + 4 * 192) / 1024:.2f}"
    assert re.search(rf"\| relation \| bf16 \| bf16 \| int8 \| .* \| {kib} \| [\d.]+ epochs", out)
    assert re.search(r"\| sparse-logit \| bf16 \| bf16 \| probabilities \| .* epochs", out)


def test_photos_without_effect_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["relation", "--data", str(tmp_path)])
    assert "--data has no effect on relation" in capsys.readouterr().err


def test_unknown_name_lists_the_names(capsys):
    with pytest.raises(SystemExit):
        main(["loder"])
    assert "loader" in capsys.readouterr().err


def test_generated_photos_are_readable():
    with open_photos(None) as source:
        images, teacher_images = next(plain_batches(source, 2, 16))
    assert images.shape == teacher_images.shape == (2, 3, 16, 16)
    assert not torch.equal(images, teacher_images)  # the jitter is the student's alone
    with open_photos(None) as source:
        images, teacher_images = next(plain_batches(source, 2, 16, jitter=0.0))
    assert images is teacher_images  # nothing is computed twice


def test_both_sides_compute_one_loss(small, photos, monkeypatch):
    networks.check_agreement(photos, 2, 32)
    monkeypatch.setattr(networks, "plain_losses", lambda student, teacher: student[0].sum())
    with pytest.raises(SystemExit, match="times do not compare"):
        networks.check_agreement(photos, 2, 32)


def test_the_reference_s_loss_is_ours():
    sides = [torch.randn(2, 3, 7, width, dtype=torch.float64) for width in (4, 4, 5, 5)]
    torch.testing.assert_close(relation_loss(*sides), plain_relation_loss(*sides))


def test_one_step_trains(small, photos):
    batches = networks.our_batches(photos, 2, 32)
    for build, images in (
        (networks.build_our_step, batches),
        (networks.build_plain_step, plain_batches(photos, 2, 32)),
    ):
        build(images, 32, "bf16")()  # raises where a gradient or a shape does not fit


def test_peak_bytes_are_those_held_at_once():
    x = torch.zeros(2**16)
    mib_quarter = 4 * 2**16
    peak = measure_peak_bytes(lambda: (x + 1) + ((x + 2) + 3))
    # x + 1 and x + 2 and their sum with 3 at a time; then x + 2 is gone.
    assert peak == pytest.approx(3 * mib_quarter, rel=0.01)


def test_turns_alternate_and_the_first_round_is_left_out():
    order = []
    seconds = take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    assert median_ratio([4.0, 9.0, 8.0], [2.0, 3.0, 8.0]) == 2.0


def test_soft_labels_prints_the_loss_and_the_records(tmp_path, photos, monkeypatch, capsys):
    monkeypatch.setattr(soft_labels, "BATCH_SIZE", 4)
    monkeypatch.setattr(soft_labels, "NUM_LABELS", 20)
    monkeypatch.setattr(soft_labels, "REAL", "no_such_module")
    main(["soft_labels", "--data", str(tmp_path), "--repeats", "1"])
    out = capsys.readouterr().out
    assert re.search(r"\| dense / sparse \| \d+\.\d\d \| \d\.\d\d \|", out)
    assert out.count("| 21,841 | 100 | 353 | 404 |") == out.count("| 1,000 | 10 | 43 | 44 |") == 3


def test_the_dense_loss_is_the_sparse_one():
    labels, logits = top_k(torch.randn(3, 50), 4), torch.randn(3, 50)
    dense = soft_labels.SoftTargetCrossEntropy()(logits, soft_labels.dense_target(labels))
    torch.testing.assert_close(sparse_cross_entropies(logits, labels).mean(), dense)


@pytest.fixture
def small_scenes(monkeypatch):
    """Crops of 64 px, three classes; a ViT that is read as the published one is."""
    tiny = StudentOptions(name="vit_tiny", embed_dim=24, num_heads=3)
    networks = {name: (tiny, options) for name, (_, options) in segment.NETWORKS.items()}
    for name, value in {"IMG_SIZE": 64, "NUM_CLASSES": 3, "NETWORKS": networks}.items():
        monkeypatch.setattr(segment, name, value)


def test_segment_prints_every_network(small_scenes, capsys, monkeypatch):
    monkeypatch.setattr(segment, "SHOWN", {})  # each in a process of its own
    main(["segment", "--repeats", "1"])
    inference, training = capsys.readouterr().out.split("| training |")
    assert len(re.findall(r"\| \d+\.\d\d \| \d+\.\d\d \| .* \|$", inference, re.MULTILINE)) == 9
    assert len(re.findall(r"light \| .* \| 3.0 \|$", inference, re.MULTILINE)) == 2
    rows = re.findall(r"\| \w+ \| \d+\.\d\d \| \d+\.\d\d \| \d+\.\d\d \|$", training, re.MULTILINE)
    assert len(rows) in (4, 5)  # bf16 and the reference in fp32, or fp32 alone


def test_both_segmenters_compute_one_loss(small_scenes, monkeypatch):
    segment.check_agreement()
    monkeypatch.setattr(segment, "plain_loss", lambda *_: torch.tensor(0.5))
    with pytest.raises(SystemExit, match="times do not compare"):
        segment.check_agreement()


def test_a_large_photo_s_memory_is_measured(small_scenes, monkeypatch):
    monkeypatch.setattr(segment, "LARGE", (70, 90))
    results = SimpleQueue()
    segment.measure_prediction("whole", results)
    seconds, peak = results.get()
    assert seconds > 0 <= peak


def test_detect_prints_every_network_and_rival(capsys, monkeypatch):
    tiny = {"TinyViT-5M": ("vit_tiny:embed_dim=24:depth=2:num_heads=3", 32)}
    small = {"NETWORKS": tiny, "SIZE": 64, "BATCH": 2, "NUM_CLASSES": 3, "NUM_SCORED": 6}
    for name, value in (small | {"TURN_SECONDS": 0.0, "RUNTIMES": ("torch",)}).items():
        monkeypatch.setattr(detect, name, value)
    monkeypatch.setattr(detect, "num_cores", lambda: 1)
    main(["detect", "--repeats", "1"])
    found = capsys.readouterr().out
    assert "YOLO26n is left out" in found
    assert "| TinyViT-5M | 32 | torch.export | 1 |" in found
    assert "| SSDlite-MobileNetV3 | 320 | PyTorch" in found
    assert len(re.findall(r"\| \d+\.\d \| \d+\.\d\d \|$", found, re.MULTILINE)) == 2
    assert "| pycocotools |" in found


def test_both_scores_of_detections_are_one(monkeypatch):
    monkeypatch.setattr(detect, "NUM_CLASSES", 3)
    kept = detect.made_up(5)
    assert kept.score().boxes["ap"] == pytest.approx(detect.plain(kept)[0], abs=1e-12)
