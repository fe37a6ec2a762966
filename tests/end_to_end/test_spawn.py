"""Every verb where loader processes are spawned, as on Windows and macOS, and where there are none.

A spawned process gets what can be pickled and nothing else of its parent: no global state, no open
file. What each verb does to the machine is watched meanwhile: nothing is written into the folder of
images, no network socket is opened, nothing is started that could install.
"""

import json
import multiprocessing
import socket
import sys
from pathlib import Path

import pytest

from limbeck.cli import VERBS, main
from limbeck.data import loader
from tests.data.released import write_released
from tests.end_to_end.commands import STUDENT
from tests.end_to_end.test_two_stage import section
from tests.processes import Started
from tests.recipes.searches import SEED

RELATION = [*STUDENT, "--relation.drop-path-rate", "0"]
LEFT_OUT = {"demo"}  # it writes 5,000 images and then is distill and evaluate
WITHOUT_LOADERS = {"convert-targets", "convert", "inspect"}
OWN_LOADERS = {"evaluate", "analyze"}  # which so few images do not keep busy
HAVE_OUT = {
    *("distill", "store-targets", "finetune", "compare", "two-stage", "search", "analyze"),
}
NETWORK = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}
STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"}


def words_of(verb, images, teacher, student, released):
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
            "evaluate": [*data, "--student", student, "--no-measure-speed", "--num-labels", "1"],
            "analyze": [student, *data, "--num-images", "8", "--parts", "attention"],
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
            "inspect": [student],
            "convert": [teacher, "out.pth"],
        }[verb]
    ]


def watched(lines, start_method, report):
    """Run command lines; what they opened and their loaders' processes go to ``report``."""
    multiprocessing.set_start_method(start_method, force=True)
    multiprocessing.set_forkserver_preload(["limbeck.data.view_batches"])
    seen = {}
    run_workers = loader.run_workers

    def counted(dataset, requests, num_workers, *args):
        seen[verb]["workers"].append(num_workers)
        return run_workers(dataset, requests, num_workers, *args)

    def watch(event, args):
        is_local = event in NETWORK and getattr(args[0], "family", None) == socket.AF_UNIX
        if event in NETWORK and not is_local:
            seen[verb]["network"].append(f"{event} {args[1:]}")
        if event in STARTS and "pip" in str(args):
            seen[verb]["started"].append(str(args))

    sys.addaudithook(watch)
    for verb, *words in lines:
        seen[verb] = {"network": [], "started": [], "workers": []}
        for module in [*sys.modules.values()]:
            if vars(module).get("run_workers") is run_workers:
                module.run_workers = counted
        main([verb, *words, "--out", f"out_{verb}"] if verb in HAVE_OUT else [verb, *words])
    Path(report).write_text(json.dumps(seen))


def listing(folder):
    return {str(f): (f.stat().st_mtime_ns, f.stat().st_size) for f in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def released(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("released") / "set"
    keys = sorted(str(file.relative_to(images)) for file in images.rglob("*.png"))
    write_released(folder, keys, num_epochs=1, num_classes=20, num_kept=3)
    return folder


@pytest.fixture
def run_watched(images, teacher, student, released, tmp_path):
    """Runs verbs in one process with so many loader processes; returns those of each verb."""

    def run(verbs, start_method, num_workers):
        before = listing(images)
        lines = []
        for verb in verbs:
            lines.append([verb, *words_of(verb, images, teacher, student, released)])
            if verb not in WITHOUT_LOADERS:
                lines[-1] += ["--data.num-workers", str(num_workers)]
        report = tmp_path / "seen"
        done = Started(watched, lines, start_method, str(report), folder=tmp_path).end()
        assert done.returncode == 0, done.stderr + done.stdout
        assert "Traceback" not in done.stderr and "warn" not in done.stderr.lower(), done.stderr
        assert listing(images) == before
        seen = json.loads(report.read_text())
        assert all(each["network"] == each["started"] == [] for each in seen.values()), seen
        return {verb: set(each["workers"]) for verb, each in seen.items()}

    return run


def test_every_verb_without_loader_processes(run_watched):
    found = run_watched([verb for verb in VERBS if verb not in LEFT_OUT], "spawn", 0)
    for verb, counts in found.items():
        assert counts <= {0} or verb == "doctor", verb  # which tries several


def test_every_verb_whose_loader_processes_get_what_is_pickled(run_watched):
    """As where they are spawned, from a server that has imported torch once for all."""
    verbs = [verb for verb in VERBS if verb not in LEFT_OUT | WITHOUT_LOADERS]
    found = run_watched(verbs, "forkserver", 1)
    assert {verb for verb, counts in found.items() if max(counts) > 0} == {*verbs} - OWN_LOADERS


def test_a_verb_whose_loader_processes_are_spawned(run_watched):
    """Of one verb, because each process imports torch anew; what they get is that of the others."""
    assert 1 in run_watched(["store-targets"], "spawn", 1)["store-targets"]
