"""Runs the built `lockstep` as a user would, and reads what it writes. Standard library only."""

import array
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
import unittest

SOURCE = os.environ.get("LOCKSTEP_SOURCE_DIR", os.path.join(os.path.dirname(__file__), "..", ".."))
BINARY = os.environ["LOCKSTEP_BINARY"]
MODELS = os.path.join(SOURCE, "tests", "goldens", "models")
GOLDENS = os.path.join(SOURCE, "tests", "goldens", "goldens")
TINY = os.path.join(SOURCE, "models", "tiny")


def source(*parts):
    return os.path.join(SOURCE, *parts)


def mpirun(ranks):
    """The command line that starts `ranks` under Open MPI on this machine, as root too."""
    command = ["mpirun", "-n", str(ranks), "--oversubscribe"]
    if os.geteuid() == 0:
        command.insert(1, "--allow-run-as-root")
    return command


def run(*arguments, stdin=None, timeout=120, prefix=(), env=None):
    """Runs one command to its end."""
    environment = dict(os.environ)
    environment.update(env or {})
    return subprocess.run([*prefix, BINARY, *map(str, arguments)], input=stdin, capture_output=True,
                          timeout=timeout, env=environment, check=False,
                          stdin=subprocess.DEVNULL if stdin is None else None)


def start(*arguments, prefix=()):
    """Starts a command in a process group of its own and returns the process."""
    return subprocess.Popen([*prefix, BINARY, *map(str, arguments)], stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def children(pid):
    """Process ids of the direct children."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", encoding="ascii", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(entry))
    return sorted(found)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# Against hanging; how fast something is, is no test's matter.
PATIENCE_S = 60.0


def wait_for(condition, seconds=PATIENCE_S, step=0.01):
    """Polls until the condition is true; False if it never was."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(step)
    return False


class Tensors:
    """A safetensors file; floats as array('f'), 32-bit integers as array('i')."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self._bytes = file.read()
        size = struct.unpack("<Q", self._bytes[:8])[0]
        self.header = json.loads(self._bytes[8:8 + size])
        self.header.pop("__metadata__", None)
        self._begin = 8 + size

    def raw(self, name):
        begin, end = self.header[name]["data_offsets"]
        return self._bytes[self._begin + begin:self._begin + end]

    def values(self, name):
        kind = {"F32": "f", "I32": "i", "I64": "q"}[self.header[name]["dtype"]]
        numbers = array.array(kind)
        numbers.frombytes(self.raw(name))
        return numbers

    def shape(self, name):
        return self.header[name]["shape"]

    def names(self):
        return sorted(self.header)


def relative_error(got, want):
    """Largest difference over the largest reference value."""
    assert len(got) == len(want), (len(got), len(want))
    largest = max(abs(value) for value in want)
    return max(abs(a - b) for a, b in zip(got, want)) / largest


class TestCase(unittest.TestCase):
    """A test with a directory of its own that is gone afterwards."""

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="lockstep-test-")
        self.addCleanup(shutil.rmtree, self.directory, True)

    def path(self, name):
        return os.path.join(self.directory, name)

    def write(self, name, text):
        with open(self.path(name), "w", encoding="utf-8") as file:
            file.write(text)
        return self.path(name)

    def copy_model(self, name="tiny-a"):
        return shutil.copytree(os.path.join(MODELS, name), self.path(name))

    def assert_fails(self, result, code, *needles):
        text = result.stderr.decode()
        self.assertEqual(result.returncode, code, text)
        self.assertEqual(result.stdout, b"")
        for needle in needles:
            self.assertIn(needle, text)

    def end(self, process, seconds=30):
        """Waits for a process started here; kills its group if it does not end. Returns code, out, err."""
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            self.fail(f"did not end within {seconds} s; stderr:\n{err.decode()}")
        return process.returncode, out.decode(), err.decode()
