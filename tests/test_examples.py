"""The examples run as they are, and as a user would run them."""

import ast
import json
import re
import subprocess
import sysconfig
import venv
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.cli import main
from limbeck.data.options import DataOptions
from limbeck.data.views import eval_view
from limbeck.exports.formats import FORMATS, has_packages
from limbeck.models.finished import save_student
from limbeck.models.vit import build_encoder
from limbeck.recipes.ship.export import ExportConfig, export
from limbeck.recipes.ship.options import MeasureOptions
from limbeck.recipes.ship.predict import PredictConfig, predict
from limbeck.recipes.train.detect import detect
from limbeck.records import Tap
from tests.models.families import architecture_of
from tests.processes import Started
from tests.recipes.objects import detect_config, draw_objects
from tests.recipes.runs import draw_classes

LOGITS = Tap("logits")

FOLDER = Path(__file__).resolve().parents[1] / "examples"
EXAMPLES = sorted(FOLDER.glob("own_*.py"))


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """The Python of an environment with all that limbeck needs, and not limbeck."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    python = str(folder / "bin" / "python")
    tried = subprocess.run([python, "-I", "-c", "import limbeck"], capture_output=True, text=True)
    assert "No module named 'limbeck'" in tried.stderr
    return python


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda file: file.stem)
def test_example_runs(example):
    done = Started(run_path, str(example), None, "__main__", folder=example.parent).end()
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    if example.stem == "own_study":
        assert re.search(r"\| relation \| [\d.]+ ± [\d.]+ \| [\d.]+ ± ", done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino", "timm"])
def test_an_exported_file_runs_without_the_package(to, tmp_path, bare_python):
    if not has_packages(to):
        pytest.skip("the extra export is not installed")
    images = draw_classes(tmp_path / "photos")
    names = ["blue", "green", "red"]
    architecture = architecture_of("augreg")
    architecture["kwargs"]["num_classes"] = len(names)
    torch.manual_seed(0)
    encoder = build_encoder(architecture).eval()
    torch.nn.init.normal_(encoder.model.head.weight)
    save_student(encoder, tmp_path / "run", {"classes": names})
    file = tmp_path / f"net{FORMATS[to].suffix}"
    export(ExportConfig(
        network=str(tmp_path / "run"), to=to, out=file, num_images=4,
        input=None if to == "timm" else "uint8",
        data=DataOptions(root=str(images), num_workers=0),
        measure=MeasureOptions(batch_size=1, num_runs=1),
    ))  # fmt: skip
    assert len(EXAMPLES) + 4 == len(list(FOLDER.glob("*.py")))
    photo = images / "red" / "000.png"
    pixels = eval_view(np.array(Image.open(photo)), 32)
    expected = names[int(encoder(pixels[None] / 255, None, (LOGITS,)).taps[LOGITS].argmax())]
    words = [str(FOLDER / f"run_{to}.py"), str(file), str(photo)]
    code = ast.parse(Path(words[0]).read_text()).body[1:]
    assert sum(1 + each.end_lineno - each.lineno for each in code) <= 20
    beside = file.with_name(f"{file.name}.json")
    said = json.loads(beside.read_text())
    assert 0 < said["proof"]["thresholds"]["file"]["threshold"] < 1
    for least, answer in ((0, expected), (2, expected if to == "timm" else "unsure")):
        said["proof"]["thresholds"]["file"]["threshold"] = least
        beside.write_text(json.dumps(said))
        done = subprocess.run([bare_python, "-I", *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == answer


def test_a_verb_of_ones_own_is_run_by_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES[0].parent)
    from own_teacher import draw_images

    words = ["--data", str(draw_images(tmp_path / "discs", 32)), "--out", str(tmp_path / "run")]
    shape = "vit_tiny:img_size=32:patch_size=8:embed_dim=16:depth=1:num_heads=2"
    main(["own_training:regress", *words, "--student", shape, "--train.epochs", "1"])
    assert capsys.readouterr().out == f"{tmp_path / 'run'}\n"
    main(["own_training:regress", "--help"])
    assert "--train.epochs" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["own_training:regress", "--data", str(tmp_path / "nowhere")])
    assert "limbeck: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["own_training:Regression"])
    assert "no function of one options class" in capsys.readouterr().err
    (tmp_path / "odd_verb.py").write_text(
        "from __future__ import annotations\ndef verb(config: Missing): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit):
        main(["odd_verb:verb"])
    assert "annotations can't be read: NameError: name 'Missing'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_detector_s_file_runs_without_the_package(tmp_path, bare_python):
    if not has_packages("onnx"):
        pytest.skip("the extra export is not installed")
    objects = draw_objects(tmp_path / "objects", 16)
    detect(detect_config(objects, tmp_path / "run"))
    file = tmp_path / "net.onnx"
    export(ExportConfig(
        network=str(tmp_path / "run"), to="onnx", out=file, input="uint8",
        measure=MeasureOptions(batch_size=1, num_runs=1),
    ))  # fmt: skip
    record = json.loads((tmp_path / "net.onnx.json").read_text())
    least = record["proof"]["thresholds"]["file"]["threshold"]
    run, out = str(tmp_path / "run"), tmp_path / "said"
    found = predict(PredictConfig(network=run, images=(str(objects),), out=out, threshold=least))
    lines = map(json.loads, (found.out / "predictions.jsonl").read_text().splitlines())
    line = max(lines, key=lambda each: len(each["boxes"]))
    words = [str(FOLDER / "run_onnx_boxes.py"), str(file), str(objects / line["image"])]
    done = subprocess.run([bare_python, "-I", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected, said = line["boxes"], done.stdout.splitlines()
    assert len(said) == len(expected) > 0
    for own, other in zip(said, expected, strict=True):
        name, score, *corners = own.split()
        left, top, wide, high = other["box"]
        assert name == other["class"] and float(score) == pytest.approx(other["score"], abs=1e-3)
        box = [left, top, left + wide, top + high]
        assert [float(each) for each in corners] == pytest.approx(box, abs=0.06)
