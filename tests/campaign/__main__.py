"""Run every hostile input of the campaign: ``python -m tests.campaign [AREA ...] [-k WORDS]``.

Each runs in a process of its own, forked from one that has imported torch, in a scratch folder that
is removed afterwards. What is wrong: a traceback, an "unexpected" error, an exit code or a text
other than the input says, a hang, more than 1 GB of growth, a program started, an address looked
up, or a file read that is neither the input's nor the installation's. (What libraries open in C or
Rust is beyond the hook that watches this; names are checked before they get there.)
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from tests.campaign.hostile import Hostile

ROOT = Path(__file__).resolve().parents[2]
MAX_GROWTH_MIB = 1024
FORBIDDEN = (
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn",
    "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request", "webbrowser.open",
)  # fmt: skip
SYSTEM = ("/proc", "/sys", "/dev", "/usr", "/lib", "/etc", "/opt", "/run")
WRONG_WORDS = ("Traceback (most recent call last)", "This should not happen", "limbeck: unexpected")


@dataclass(frozen=True)
class Ended:
    """How an input ended: exit code (None: it hung), what it said, its memory, what it did."""

    code: int | None
    said: str
    mib: float
    did: tuple[str, ...]


def areas() -> list[str]:
    """The files of the campaign that have inputs."""
    names = sorted(file.stem for file in Path(__file__).parent.glob("*.py"))
    return [name for name in names if name not in ("__init__", "__main__", "hostile")]


def inputs_of(area: str, folder: Path) -> Iterator[Hostile]:
    """The inputs of an area, whose files are made below ``folder``."""
    make: Callable[[Path], Iterator[Hostile]] = import_module(f"tests.campaign.{area}").inputs
    return make(folder)


def watch(log: int, inside: tuple[str, ...]) -> None:
    """Write to ``log`` what this process does that it must not."""

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event in FORBIDDEN or (event == "socket.connect" and not isinstance(args[1], str)):
            os.write(log, f"{event} {args[:2]!r}\n".encode("utf-8", "replace"))
        elif event == "open" and isinstance(args[0], str | bytes):
            path = os.path.realpath(os.fsdecode(args[0]))
            if not path.startswith(inside):
                os.write(log, f"opened {path!r}\n".encode("utf-8", "replace"))

    sys.addaudithook(hook)


def run(hostile: Hostile, scratch: Path) -> Ended:
    """Run one input in a forked process."""
    files = [scratch / name for name in ("said", "did")]
    child = os.fork()
    if not child:
        os.setsid()
        said, did = (os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC) for file in files)
        for stream in (1, 2):
            os.dup2(said, stream)
        inside = [str(scratch), os.environ["HF_HOME"], str(ROOT), sys.prefix, sys.base_prefix]
        inside += SYSTEM
        work = scratch / "work"
        work.mkdir(exist_ok=True)
        os.chdir(work)
        watch(did, tuple(os.path.realpath(place) for place in inside))
        code = 1
        try:
            from limbeck.cli import main

            main(list(hostile.words))
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            for text in (sys.stdout, sys.stderr):
                text.flush()
            os._exit(code)
    ends = time.monotonic() + hostile.seconds
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            code: int | None = os.waitstatus_to_exitcode(status)
            break
        if time.monotonic() > ends:
            os.killpg(child, signal.SIGKILL)
            _, _, usage = os.wait4(child, 0)
            code = None
            break
        time.sleep(0.02)
    said, did = (file.read_text(encoding="utf-8", errors="replace") for file in files)
    return Ended(code, said, usage.ru_maxrss / 1024, tuple(did.splitlines()))


def wrongs(hostile: Hostile, ended: Ended, base_mib: float) -> list[str]:
    """What was wrong with how an input ended; nothing if all is right."""
    found = []
    if ended.code is None:
        found.append(f"hung for {hostile.seconds:g} s")
    elif ended.code not in hostile.exits:
        found.append(f"exit code {ended.code}, not one of {hostile.exits}")
    found += [f"said {words!r}" for words in WRONG_WORDS if words in ended.said]
    wanted, said = (" ".join(text.lower().split()) for text in (hostile.says, ended.said))
    if wanted not in said:
        found.append(f"did not say {hostile.says!r}")
    if ended.mib - base_mib > MAX_GROWTH_MIB:
        found.append(f"grew by {ended.mib - base_mib:,.0f} MiB")
    return found + list(dict.fromkeys(ended.did))


def main() -> None:
    """Run the areas that are named, or all; exits with 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("areas", nargs="*", default=areas(), metavar="AREA")
    parser.add_argument("-k", default="", help="only inputs whose names have these words")
    parser.add_argument("-v", action="store_true", help="show what each input said")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="limbeck-campaign-") as cache:
        os.environ |= {"HF_HOME": cache, "OMP_NUM_THREADS": "1"}
        _import_all()
        run_all(options)


def run_all(options: argparse.Namespace) -> None:
    """Run what the options name, and exit."""
    counts: Counter[str] = Counter()
    for area in options.areas:
        for number, hostile in enumerate(_each(area)):
            scratch = hostile[0]
            if options.k in hostile[1].name:
                base = run(Hostile("nothing", ["--version"]), scratch).mib
                ended = run(hostile[1], scratch)
                found = wrongs(hostile[1], ended, base)
                counts[area] += 1
                counts["wrong"] += bool(found)
                if found or options.v:
                    print(f"{'WRONG' if found else 'right'} {area} {number} {hostile[1].name}")
                    print("".join(f"    {each}\n" for each in found), end="")
                    print("".join(f"    | {line}\n" for line in ended.said.splitlines()[-8:]))
        print(f"{area}: {counts[area]} inputs", flush=True)
    total = sum(counts[area] for area in options.areas)
    print(f"{total - counts['wrong']} passed, {counts['wrong']} failed")
    sys.exit(bool(counts["wrong"]))


def _each(area: str) -> Iterator[tuple[Path, Hostile]]:
    """The inputs of an area with the scratch folder that they share."""
    scratch = Path(tempfile.mkdtemp(prefix="limbeck-campaign-"))
    tempfile.tempdir = os.environ["TMPDIR"] = str(scratch)
    (scratch / "files").mkdir()
    try:
        for hostile in inputs_of(area, scratch / "files"):
            yield scratch, hostile
    finally:
        tempfile.tempdir = None
        del os.environ["TMPDIR"]
        for words in (["chmod", "-R", "u+rwX"], ["rm", "-rf"]):  # some lie too deep for Python
            subprocess.run([*words, scratch], check=False, stderr=subprocess.DEVNULL)


def _import_all() -> None:
    """What every input would import first, once; and no thread, which a fork would lose."""
    import torch

    import limbeck
    from limbeck.verbs import VERBS, config_class

    torch.set_num_threads(1)
    for verb in VERBS:
        config_class(verb)
    for name in limbeck.__all__:
        getattr(limbeck, name)


if __name__ == "__main__":
    main()
