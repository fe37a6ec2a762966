"""House rules that no reviewer has to remember: floors, fences, the public list, mirrored tests."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import limbeck
from limbeck.cli import VERBS, config_class
from limbeck.config import PRESETS_DIR, from_plain, preset_names, read_preset

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "limbeck"

FLOORS = {
    "errors": -3, "records": -3, "files": -2, "limits": -2, "documents": -1,
    "config": 0, "ops": 0,
    "data": 1, "models": 1, "engine": 1,
    "methods": 2, "tasks": 2,
    "evaluation": 3, "export": 3,
    "recipes": 4,
    "cli": 5, "__main__": 6,
}  # fmt: skip

FENCES = {
    "timm": ("models/", "data/"),
    "transformers": ("models/origins/huggingface.py",),
    "huggingface_hub": ("models/origins/",),
    "datasets": ("data/",),
    "fsspec": ("data/",),
    "matplotlib": ("evaluation/report.py", "evaluation/pictures.py"),
    "onnx": ("export/",),
    "onnxruntime": ("export/",),
    "tensorboard": ("engine/log.py",),
    "wandb": ("engine/log.py",),
    "mlxtend": ("recipes/demo.py",),
    "tyro": ("cli.py", "options.py", "recipes/"),
}

MODULES = sorted(
    file.relative_to(PACKAGE) for file in PACKAGE.rglob("*.py") if file.name != "__init__.py"
)


def imports_of(file):
    """Names of all modules that a file imports, anywhere in it."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_floors_and_fences(path):
    part = path.parts[0].removesuffix(".py")
    for name in imports_of(PACKAGE / path):
        top, *rest = name.split(".")
        if top == "limbeck" and rest:
            other = rest[0]
            assert other == part or FLOORS[other] < FLOORS[part], f"{path} imports {name}"
        elif top in FENCES:
            place = path.as_posix()
            allowed = any(place.startswith(f) or place.endswith(f) for f in FENCES[top])
            assert allowed, f"{path} imports {name}; only {FENCES[top]} may"


WITHOUT_OWN_TEST = {
    "__main__.py",  # two lines; the end-to-end tests run it
    "data/source.py", "methods/method.py", "tasks/task.py", "models/encoder.py",  # tests/contracts
    "recipes/lineage.py",  # read back in tests/end_to_end
    "records.py",  # plain data
}  # fmt: skip


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_module_has_its_test_file(path):
    is_options = path.name == "options.py" or path.parent.name == "options"
    if path.as_posix() in WITHOUT_OWN_TEST or is_options:
        return
    test = ROOT / "tests" / path.parent / f"test_{path.name}"
    assert test.is_file(), f"{path} has no {test.relative_to(ROOT)}"


def test_the_public_list_is_what_can_be_imported():
    for name in limbeck.__all__:
        assert vars(limbeck).get(name) is not None or getattr(limbeck, name) is not None
    assert {verb.replace("-", "_") for verb in VERBS} <= set(limbeck.__all__)
    assert dir(limbeck) == sorted(limbeck.__all__)


@pytest.mark.parametrize("file", sorted(PRESETS_DIR.glob("*.toml")), ids=lambda file: file.stem)
def test_every_preset_builds_its_config(file):
    (verb,) = (name for name in VERBS if file.stem in preset_names(name))
    from_plain(config_class(verb), read_preset(file.stem, verb), file.stem)


@pytest.mark.parametrize("verb", VERBS)
def test_checks_and_help_need_no_torch(verb):
    """Options are read, and refused, before torch would be loaded."""
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('torch' in sys.modules))\n"
        "from limbeck.cli import main\n"
        f"main(['{verb}', '--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"limbeck {verb}" in done.stdout
    assert done.stdout.endswith("False\n")


def test_no_address_and_no_local_path_in_the_repository():
    for name in ("constraints.txt", "pyproject.toml", "Makefile"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "://" not in text and "@ file" not in text
