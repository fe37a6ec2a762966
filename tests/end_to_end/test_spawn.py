"""Every verb where loader processes are spawned, as on Windows and macOS, and where there are none.

A spawned process gets what can be pickled and nothing else of its parent: no global state, no open
file. What each verb does to the machine is watched meanwhile: the folder of images is read-only and
stays as it is, no socket but of this machine's files is opened or bound, no program is started but
uname and, for an export's latency, Python.
"""

import json
import multiprocessing
import socket
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from limbeck.cli import main
from limbeck.data import loader
from limbeck.verbs import VERBS, function_of
from tests.data.released import write_released
from tests.end_to_end.commands import STUDENT
from tests.end_to_end.test_two_stage import section
from tests.processes import Started
from tests.recipes.objects import SHAPE as DETECTS
from tests.recipes.objects import draw_objects
from tests.recipes.runs import draw_classes
from tests.recipes.searches import SEED

RELATION = [*STUDENT, "--relation.drop-path-rate", "0"]
RUN = [verb for verb in VERBS if verb != "serve"]  # which is to be asked, and has its own tests
WITHOUT_LOADERS = {
    *("convert-targets", "convert", "inspect", "presets", "cost", "push", "report"),
}
OWN_LOADERS = {"demo"}  # of which it has no option; those of its runs are those of the other verbs
HAVE_OUT = {
    *("distill", "store-targets", "finetune", "compare", "two-stage", "search", "analyze"),
    *("demo", "segment", "detect", "predict", "embed", "push"),
}
NETWORK = {
    *("socket.__new__", "socket.bind", "socket.connect", "socket.sendto", "socket.sendmsg"),
    *("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"),
}
STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.startfile"}
ALLOWED = {
    # What imports it learns so whether there is IPv6: a port of ::1 is bound and closed.
    *((event, "urllib3.util.connection") for event in ("socket.__new__", "socket.bind")),
}
ASKS_PROCESSOR = ["uname", "-p"]  # Python's platform.processor(), for records of latency
MEASURES = [sys.executable, "-m", "limbeck.exports.measure"]  # a file, in a process of its own


def words_of(verb, images, teacher, student, released, scenes, segmenter, objects):
    """A short command line; what it writes goes to the working folder."""
    taught = ["--teacher", teacher]
    data = ["--data", images, "--data.holdout-ratio", "0.25"]
    one = ["--relation.drop-path-rate", "0", "--method", "relation"]
    return [
        str(word)
        for word in {
            "distill": [*data, *RELATION, *taught, *section("", 1)],
            "store-targets": [*data[:2], *STUDENT, *one, *taught, "--device", "cpu"],
            "convert-targets": [released, "out", "--classes", "20", *data[:2]],
            "finetune": [*data, "--student", student, *section("", 1)],
            "segment": [
                *("--data", scenes, "--data.holdout-ratio", "0.25", "--student", SEED),
                *section("", 1),
            ],
            "detect": [
                *("--data", objects, "--data.holdout-ratio", "0.25", "--student", DETECTS),
                *("--img-size", "48", *section("", 1)),
            ],
            "predict": [segmenter, images, "--device", "cpu"],
            "evaluate": [
                *data,
                "--student",
                student,
                "--no-measure-speed",
                "--num-labels",
                "1",
                *("--embed.batch-size", "6"),
            ],
            "analyze": [
                student,
                *data,
                "--num-images",
                "8",
                "--parts",
                "attention",
                *("--embed.batch-size", "4"),
            ],
            "compare": [
                *("--arms", "masked-pixel", "--seeds", "1", "--no-fine-tune", *data, *STUDENT),
                *section("", 1),
            ],
            "two-stage": [
                *(*data, *RELATION, *taught, "--method", "relation", "--no-measure-speed"),
                *("--arms", "both", *section("", 1), *section("specific.", 1)),
                *(*section("tune-teacher.", 1), "--specific.head", "distilled"),
            ],
            "search": [
                *("--student", SEED, "--rounds", "1", "--factors", "width", *data, *taught, *one),
                *("--limits.macs", "70%", "--latency.runtime", "torch", *section("", 1)),
            ],
            "doctor": [*data, *RELATION, *taught, *section("", 1)],
            "doctor finetune": [*data, "--student", student, *section("", 1)],
            "doctor segment": ["--data", scenes, "--student", SEED, *section("", 1)],
            "doctor detect": [
                *("--data", objects, "--student", DETECTS, "--img-size", "48", *section("", 1)),
            ],
            "inspect": [student],
            "cost": [student, "--no-measure"],
            "presets": ["photos_vit_tiny"],
            "demo": ["--seeds", "1", "--teacher-epochs", "1", "--student-epochs", "1"],
            "convert": [teacher, "out.pth"],
            "push": [student, "--to", "me/net"],
            "report": [student, "--out", "page.html"],
            "embed": [images, "--model", student, "--embed.batch-size", "4"],
            "export": [
                *(student, "--to", "timm", "--data", images, "--num-images", "17"),
                *("--measure.batch-size", "1", "--measure.num-runs", "1"),
            ],
        }[verb]
    ]


def watched(lines, start_method, report):
    """Run command lines; what they opened and their loaders' processes go to ``report``."""
    multiprocessing.set_start_method(start_method, force=True)
    multiprocessing.set_forkserver_preload(["limbeck.data.view_batches"])
    loader.num_cores = lambda: 1  # none but those that a command line asks for
    seen = {}
    run_workers = loader.run_workers

    def counted(dataset, requests, num_workers, *args):
        seen[verb]["workers"].append(num_workers)
        return run_workers(dataset, requests, num_workers, *args)

    def watch(event, args):
        if event in NETWORK and not is_local(event, args):
            by = caller(sys._getframe(1))
            if (event, by) not in ALLOWED:
                seen[verb]["network"].append(f"{event} {args[1:]} by {by}")
        known = event == "subprocess.Popen" and args[1] in (ASKS_PROCESSOR, MEASURES)
        if event in STARTS and not known:
            seen[verb]["started"].append(f"{event} {args[:2]} by {caller(sys._getframe(1))}")

    sys.addaudithook(watch)
    for verb, *words in lines:
        seen[verb] = {"network": [], "started": [], "workers": []}
        for module in [*sys.modules.values()]:
            if vars(module).get("run_workers") is run_workers:
                module.run_workers = counted
        main([verb, *words, "--out", f"out_{verb}"] if verb in HAVE_OUT else [verb, *words])
    Path(report).write_text(json.dumps(seen))


def is_local(event, args):
    """Of a socket between processes of this machine; -1 is of one that there is already."""
    family = args[1] if event == "socket.__new__" else getattr(args[0], "family", None)
    return family in (socket.AF_UNIX, -1)


def caller(frame):
    """The module that meant it."""
    while frame.f_back and frame.f_globals["__name__"] in ("socket", "subprocess"):
        frame = frame.f_back
    return frame.f_globals["__name__"]


@contextmanager
def read_only(folder):
    """Nothing in it can be written (but by root, whom its listing is for)."""
    modes = {each: each.stat().st_mode for each in (folder, *folder.rglob("*"))}
    try:
        for each, mode in modes.items():
            each.chmod(mode & ~0o222)
        yield
    finally:
        for each, mode in modes.items():
            each.chmod(mode)


def listing(folder):
    return {str(f): (f.stat().st_mtime_ns, f.stat().st_size) for f in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def released(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("released") / "set"
    keys = sorted(str(file.relative_to(images)) for file in images.rglob("*.png"))
    write_released(folder, keys, num_epochs=1, num_classes=20, num_kept=3)
    return folder


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    return draw_objects(tmp_path_factory.mktemp("objects") / "blocks")


@pytest.fixture
def run_watched(images, teacher, student, released, scenes, segmenter, objects, tmp_path):
    """Runs verbs in one process with so many loader processes; returns those of each verb."""

    fixtures = images, teacher, student, released, scenes, segmenter, objects

    def run(verbs, start_method, num_workers):
        before = listing(images)
        lines = []
        for verb in verbs:
            lines.append([verb, *words_of(verb, *fixtures)])
            if verb not in WITHOUT_LOADERS | OWN_LOADERS:
                lines[-1] += ["--data.num-workers", str(num_workers)]
        report = tmp_path / "seen"
        with read_only(images):
            done = Started(watched, lines, start_method, str(report), folder=tmp_path).end()
        assert done.returncode == 0, done.stderr + done.stdout
        assert "Traceback" not in done.stderr and "warn" not in done.stderr.lower(), done.stderr
        assert listing(images) == before
        seen = json.loads(report.read_text())
        done_by = [(verb, *each["network"], *each["started"]) for verb, each in seen.items()]
        assert [each for each in done_by if len(each) > 1] == []
        return {verb: set(each["workers"]) for verb, each in seen.items()}

    return run


def test_every_verb_without_loader_processes(run_watched, tmp_path):
    for part in ("train", "test"):  # the demo takes the digits that it finds
        draw_classes(tmp_path / "out_demo" / "digits" / part, num_per_class=24)
    (tmp_path / "out_demo" / "digits" / "complete").touch()
    found = run_watched(RUN, "spawn", 0)
    for verb, counts in found.items():
        assert counts <= {0} or function_of(verb) == "doctor", verb  # which tries several


def test_every_verb_whose_loader_processes_get_what_is_pickled(run_watched):
    """As where they are spawned, from a server that has imported torch once for all."""
    verbs = [verb for verb in RUN if verb not in WITHOUT_LOADERS | OWN_LOADERS]
    found = run_watched(verbs, "forkserver", 1)
    assert {verb for verb, counts in found.items() if max(counts) > 0} == {*verbs}


def test_a_verb_whose_loader_processes_are_spawned(run_watched):
    """Of one verb, because each process imports torch anew; what they get is that of the others."""
    assert 1 in run_watched(["store-targets"], "spawn", 1)["store-targets"]
