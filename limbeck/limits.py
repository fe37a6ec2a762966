"""What the operating system lets this process have: cores and memory.

A container or a batch job often has a part of its machine: a mask of cores (affinity), a share of
their time or a bound on memory (cgroups, as ``docker run --cpus 2 --memory 8g`` sets them).
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def num_cores(root: Path = ROOT) -> int:
    """Cores that this process may use, a part of one counted as one.

    ``root`` is where the system's files are looked for.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # Linux only
        cores = os.cpu_count() or 1
    shares = []
    for file in _files(root, "cpu", "cpu.max"):  # "200000 100000", or "max 100000"
        quota, _, period = _read(file).partition(" ")
        shares.append((_number(quota), _number(period)))
    for file in _files(root, "cpu", "cpu.cfs_quota_us"):  # "200000", or "-1"
        period = _read(file.with_name("cpu.cfs_period_us"))
        shares.append((_number(_read(file)), _number(period)))
    own = [math.ceil(quota / period) for quota, period in shares if quota and period]
    return max(1, min([cores, *own]))


def memory_bytes(root: Path = ROOT) -> int | None:
    """Memory that this process may use; None where the system does not tell."""
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None
    names = ("memory.max", "memory.limit_in_bytes")
    files = [file for name in names for file in _files(root, "memory", name)]
    return min([whole, *filter(None, map(_number, map(_read, files)))])


def peak_memory_mib(root: Path = ROOT) -> float | None:
    """Most memory of this process since its start, or a reset; None where the system is silent."""
    lines = _read(root / "proc/self/status").splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), None)


def _files(root: Path, controller: str, name: str) -> Iterator[Path]:
    """A file of this process's own cgroup and of all around it, whose limits hold as well."""
    top = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        # "0::/a/b" of version 2, "4:cpu,cpuacct:/a/b" of version 1.
        _, controllers, own = (*line.split(":", 2), "", "")[:3]
        if controllers and controller not in controllers.split(","):
            continue
        base = top / controllers if controllers else top
        folder = base / own.strip("/")
        # Within a container the path may be the host's: then its own group is at the base.
        yield from (
            each / name
            for each in (folder, *folder.parents)
            if each.is_relative_to(base) and (each / name).is_file()
        )


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(text: str) -> int:
    """0 where there is no limit."""
    return int(text) if text.isdecimal() else 0
