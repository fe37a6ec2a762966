"""Real processes for the tests of writing: forked, so that they start in no time."""

import os
import signal
import subprocess
import traceback
import warnings
from contextlib import contextmanager

import pytest

from limbeck.data.target_store import place


def start(work):
    """Run ``work`` in a process of its own; returns its id. It ends with 1 where that raises."""
    with warnings.catch_warnings(action="ignore"):  # of forking beside sleeping threads
        child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def end(child):
    """Wait for it; its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(moment, number):
    """Make this process kill itself at the n-th file that it writes: kill -9, no clean-up.

    ``moment``: "before" any byte, "half" of the bytes are written, "written" and flushed to the
    disk but not renamed, "renamed".
    """
    write_through, replace, count = place._write_through, os.replace, 0

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    def write(descriptor, data):
        nonlocal count
        count += 1
        if count == number and moment == "before":
            kill()
        if count == number and moment == "half":
            os.write(descriptor, data[: len(data) // 2])
            kill()
        write_through(descriptor, data)

    def rename(*names):
        if count == number and moment == "written":
            kill()
        replace(*names)
        if count == number and moment == "renamed":
            kill()

    place._write_through, place.os.replace = write, rename


@contextmanager
def small_disk(folder, options):
    """A file system of its own on a folder; skips the test where mounting is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip("mounting needs more rights")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
