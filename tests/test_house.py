"""House rules that no reviewer has to remember: floors, fences, the public list, mirrored tests."""

import ast
import dataclasses
import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

import pydantic
import pytest

import limbeck
from limbeck.config import PRESETS_DIR, from_plain, preset_names, read_preset
from limbeck.verbs import VERBS, config_class, function_of

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "limbeck"

FLOORS = {
    "errors": -3, "papers": -3, "records": -3, "verbs": -3, "files": -2, "limits": -2,
    "documents": -1,
    "config": 0, "ops": 0,
    "data": 1, "models": 1, "engine": 1,
    "methods": 2, "tasks": 2,
    "evaluation": 3, "exports": 3,
    "recipes": 4, "help": 4,
    "cli": 5, "__main__": 6,
}  # fmt: skip

ROOMS = {"run": 0, "targets": 1, "train": 2, "look": 3, "study": 4, "ship": 5}
"""Of recipes: each may use those before it."""

FENCES = {
    "timm": ("models/", "data/", "exports/timm.py"),
    "transformers": ("models/origins/huggingface.py",),
    "huggingface_hub": ("models/origins/",),
    "datasets": ("data/",),
    "fsspec": ("data/",),
    "fastapi": ("recipes/ship/serving/",),
    "starlette": ("recipes/ship/serving/",),
    "uvicorn": ("recipes/ship/serving/",),
    "matplotlib": ("evaluation/report.py", "evaluation/pictures.py"),
    "plotly": ("evaluation/page/charts.py",),
    "markdown_it": ("evaluation/page/render.py",),
    "onnx": ("exports/",),
    "av": ("data/video.py",),
    # The one door, so that nothing is sent:
    "onnxruntime": ("exports/silent.py",),
    "openvino": ("exports/silent.py",),
    "nncf": ("exports/silent.py",),
    "tensorboard": ("engine/log.py",),
    "wandb": ("engine/log.py",),
    "mlxtend": ("recipes/study/demo.py",),
    "tyro": ("cli.py", "help.py", "options.py", "recipes/"),
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


@pytest.mark.parametrize("path", [p for p in MODULES if p.parts[0] == "recipes"], ids=str)
def test_a_room_uses_those_before_it(path):
    room = ROOMS[path.parts[1]]
    for name in imports_of(PACKAGE / path):
        parts = name.split(".")
        if parts[:2] == ["limbeck", "recipes"]:
            assert len(parts) > 2, f"{path} imports {name}; name a room"
            assert ROOMS[parts[2]] <= room, f"{path} imports {name}, of a later room"


def graph_of(package):
    """Each module of a package, and those of it that its file imports anywhere, for types too."""
    files = {}
    for file in package.rglob("*.py"):
        parts = file.relative_to(package.parent).with_suffix("").parts
        files[".".join(parts).removesuffix(".__init__")] = file
    graph = {}
    for name, file in files.items():
        asked = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                asked |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                asked |= (inner & files.keys()) or {node.module}
        graph[name] = (asked & files.keys()) - {name}
    return graph


def circle_in(graph):
    """The modules of one circle, or none."""
    left = dict(graph)
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    if not left:
        return []
    way = [min(left)]
    while way[-1] not in way[:-1]:
        way.append(min(left[way[-1]] & left.keys()))
    return way[way.index(way[-1]) : -1]


def test_no_circle_of_files():
    assert circle_in(graph_of(PACKAGE)) == []


def test_a_planted_circle_is_found(tmp_path):
    package = tmp_path / "planted"
    package.mkdir()
    (package / "a.py").write_text("if TYPE_CHECKING:\n    from planted.b import B\n")
    (package / "b.py").write_text("def f():\n    from planted import c\n")
    (package / "c.py").write_text("import planted.a\n")
    (package / "d.py").write_text("import planted.a\n")
    assert sorted(circle_in(graph_of(package))) == ["planted.a", "planted.b", "planted.c"]
    (package / "c.py").write_text("import os\n")
    assert circle_in(graph_of(package)) == []


BESIDE = sorted(
    path.relative_to(ROOT)
    for folder in ("benchmarks", "examples", "experiments")
    for path in (ROOT / folder).rglob("*.py")
)


@pytest.mark.parametrize("path", BESIDE, ids=str)
def test_what_lies_beside_the_package_imports_what_there_is(path):
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("limbeck"):
            module = import_module(node.module)
            for alias in node.names:
                is_there = hasattr(module, alias.name) or find_spec(f"{node.module}.{alias.name}")
                assert is_there, f"{path}: {node.module} has no {alias.name}"


POSIX_ONLY = {"resource", "fcntl", "pwd", "grp", "termios"}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_what_windows_lacks_is_imported_where_it_is_used(path):
    def at_import(node):
        """What runs when the module is loaded."""
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            for child in ast.iter_child_nodes(node):
                yield from at_import(child)

    for node in at_import(ast.parse((PACKAGE / path).read_text(encoding="utf-8"))):
        names = {each.name for each in node.names} if isinstance(node, ast.Import) else set()
        names |= {node.module} if isinstance(node, ast.ImportFrom) else set()
        assert not POSIX_ONLY & names, f"{path} imports {names} when it is loaded"


WITHOUT_OWN_TEST = {
    "__main__.py",  # two lines; the end-to-end tests run it
    "data/source.py", "methods/method.py", "tasks/task.py", "models/encoder.py",  # tests/contracts
    "recipes/run/lineage.py",  # read back in tests/end_to_end
    "records.py",  # plain data
}  # fmt: skip


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_module_has_its_test_file(path):
    is_options = path.name == "options.py" or path.parent.name == "options"
    if path.as_posix() in WITHOUT_OWN_TEST or is_options:
        return
    test = ROOT / "tests" / path.parent / f"test_{path.name}"
    assert test.is_file(), f"{path} has no {test.relative_to(ROOT)}"


CLOCKS = {
    "time", "monotonic", "perf_counter", "process_time", "thread_time", "now", "today", "utcnow",
    "time_ns", "monotonic_ns", "perf_counter_ns", "process_time_ns", "times", "getrusage",
}  # fmt: skip


TEST_FILES = sorted(
    file.relative_to(ROOT)
    for file in (ROOT / "tests").rglob("*.py")
    if file.parent.name != "campaign"  # which is run by hand, and ends what hangs
)


@pytest.mark.parametrize("path", TEST_FILES, ids=str)
def test_no_test_reads_a_clock(path):
    """What takes long is counted (calls, passes, bytes, imports): seconds are a machine's."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            assert name not in CLOCKS, f"line {node.lineno} calls {name}"


def test_the_public_list_is_what_can_be_imported():
    for name in limbeck.__all__:
        assert vars(limbeck).get(name) is not None or getattr(limbeck, name) is not None
    assert {function_of(verb) for verb in VERBS} <= set(limbeck.__all__)
    assert dir(limbeck) == sorted(limbeck.__all__)


@pytest.mark.parametrize("file", sorted(PRESETS_DIR.glob("*.toml")), ids=lambda file: file.stem)
def test_every_preset_builds_its_config(file):
    (verb,) = (name for name in VERBS if file.stem in preset_names(name))
    from_plain(config_class(verb), read_preset(file.stem, verb), file.stem)


def unbounded(kind):
    """Names of the numeric options of a config class, and of its sections, without a range."""
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        for number in numbers_of(hints[field.name], ()):
            limits = {type(each).__name__[:1] for each in number}
            if not {"G", "L"} <= limits:  # Gt or Ge, and Lt or Le
                yield f"{kind.__name__}.{field.name}"
        if dataclasses.is_dataclass(field.default):
            yield from unbounded(type(field.default))


def numbers_of(hint, stated):
    """Of each number in a type: what is stated of its range."""
    inner = get_args(hint)
    if get_origin(hint) is Annotated:
        if any(isinstance(each, pydantic.AfterValidator) for each in inner[1:]):
            return
        more = [limit for each in inner[1:] for limit in getattr(each, "metadata", ())]
        yield from numbers_of(inner[0], (*stated, *more))
    elif hint in (int, float):
        yield stated
    elif get_origin(hint) is not Literal:
        for each in inner:
            yield from numbers_of(each, stated)


@pytest.mark.parametrize("verb", VERBS)
def test_every_numeric_option_has_a_range(verb):
    for task in (None, *VERBS[verb].tasks):
        assert not list(unbounded(config_class(verb, task)))


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


JSON_BYTES = {
    "documents.py",  # the door
    "data/target_store/manifest.py",  # a store is known by the hash of these bytes
    "recipes/look/robustness.py",  # kept answers are found by it
}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_json_is_read_and_written_at_one_door(path):
    text = (PACKAGE / path).read_text(encoding="utf-8")
    if path.as_posix() not in JSON_BYTES:
        assert "json" not in imports_of(PACKAGE / path), f"{path}: limbeck.documents has JSON"
    elif path.name != "documents.py":
        assert text.count("json.dumps(") == 1
        assert "json.load" not in text


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_what_leaves_the_program_goes_through_its_doors(path):
    """Text may hold names that are no UTF-8, and Pillow opens more than images."""
    if path.as_posix() in ("files.py", "evaluation/cost.py", "data/formats.py"):  # /proc is no disk
        return
    for node in ast.walk(ast.parse((PACKAGE / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            assert node.attr != "write_text", f"{path}: limbeck.files writes text"
            is_image_open = node.attr == "open" and ast.unparse(node.value) == "Image"
            assert not is_image_open, f"{path}: limbeck.data.formats opens images"


def test_every_file_that_the_architecture_names_exists():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:limbeck|tests|examples)/[\w/.-]+)`", text)
    assert len(named) > 30
    for name in named:
        assert (ROOT / name).exists(), name
    rooms = re.findall(r"^\| `(\w+)/` \|.*\| (.*) \|$", text, re.MULTILINE)
    assert [room for room, _ in rooms] == list(ROOMS)
    for room, files in rooms:
        for name in re.findall(r"`(\w+\.py)`", files):
            assert (PACKAGE / "recipes" / room / name).is_file(), f"{room}/{name}"


def test_the_architecture_has_at_most_two_pages():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 110
