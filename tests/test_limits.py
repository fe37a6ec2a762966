"""Cores and memory of this process, from files as containers and batch systems have them."""

import os

import pytest

from limbeck import limits
from limbeck.limits import memory_bytes, num_cores, peak_memory_mib


@pytest.fixture(autouse=True)
def _sixteen_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)


def system(folder, **files):
    """A system's root with these files, / written as __."""
    for name, text in files.items():
        file = folder / name.replace("__", "/").replace("_DOT_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def group_of_version_2(folder, group, **limits_of):
    """Files of one cgroup of version 2."""
    for name, text in limits_of.items():
        file = folder / "sys/fs/cgroup" / group / name.replace("_", ".", 1)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def test_without_limits_the_affinity_counts(tmp_path):
    assert num_cores(tmp_path) == 16


def test_a_share_of_time_counts_as_cores_rounded_up(tmp_path):
    system(tmp_path, proc__self__cgroup="0::/\n")
    for text, cores in [
        ("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("max 100000", 16),
        ("9900000 100000", 16), ("", 16), ("nonsense", 16), ("100000 0", 16),
    ]:  # fmt: skip
        group_of_version_2(tmp_path, "", cpu_max=text)
        assert num_cores(tmp_path) == cores, text


def test_the_limits_of_all_groups_around_it_hold(tmp_path):
    system(tmp_path, proc__self__cgroup="0::/batch/job/step\n")
    group_of_version_2(tmp_path, "batch", cpu_max="300000 100000", memory_max="4096")
    group_of_version_2(tmp_path, "batch/job/step", cpu_max="max 100000", memory_max="max")
    assert num_cores(tmp_path) == 3
    assert memory_bytes(tmp_path) == 4096


def test_version_1_and_a_path_of_the_host(tmp_path):
    system(tmp_path, proc__self__cgroup="4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n0::/\n")
    base = tmp_path / "sys/fs/cgroup"
    (base / "cpu,cpuacct").mkdir(parents=True)
    (base / "memory").mkdir()
    (base / "cpu,cpuacct/cpu.cfs_quota_us").write_text("400000\n")
    (base / "cpu,cpuacct/cpu.cfs_period_us").write_text("100000\n")
    (base / "memory/memory.limit_in_bytes").write_text("8192\n")
    assert num_cores(tmp_path) == 4
    assert memory_bytes(tmp_path) == 8192
    (base / "cpu,cpuacct/cpu.cfs_quota_us").write_text("-1\n")
    assert num_cores(tmp_path) == 16


def test_where_the_system_has_no_affinity_and_tells_no_memory(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert num_cores(tmp_path) == 5
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert memory_bytes(tmp_path) is None


def test_this_machine():
    assert num_cores() >= 1
    assert limits.memory_bytes() > 2**20


def test_the_most_memory_of_this_process(tmp_path):
    system(tmp_path, proc__self__status="Name:\tpython\nVmHWM:\t   2048 kB\n")
    assert peak_memory_mib(tmp_path) == 2
    assert peak_memory_mib(tmp_path / "elsewhere") is None
