"""What every result file says about where it comes from, and how scripts run the programs that they measure."""

import datetime
import json
import os
import pathlib
import platform
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


class Refused(SystemExit):
    """A program ended with an error; str() is what it said last. Uncaught, it ends the script with that."""


def machine():
    cpu = re.search(r"model name\s*:\s*(.*)", pathlib.Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text())
    return {
        "cpu": cpu.group(1) if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(int(memory.group(1)) * 1024 / 1e9, 1),
        "system": platform.platform(),
        "load_before": os.getloadavg()[0],
    }


def checkout():
    """The commit of these scripts, which need not be the program's."""
    said = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"],
                          capture_output=True, text=True)
    return said.stdout.strip() or "unknown"


def built_from(version):
    """The commit in what `lockstep version --json` says, with -dirty where the tree was changed; "unknown" without."""
    found = re.search(r"\(commit ([^,)\s]+)", version.get("build", ""))
    return found.group(1) if found else "unknown"


def shorten(word):
    """Files of the repository from its root, others by their name alone: a command that can be repeated elsewhere."""
    word = str(word)
    path = pathlib.Path(word)
    if path.is_absolute():
        return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    flag, equals, value = word.partition("=")
    return f"{flag}={shorten(value)}" if equals else word


def shorten_in(text, words):
    """What a program said, with the files among `words` (its command) shortened."""
    values = [str(word).split("=", 1)[-1] for word in words]
    for value in sorted(values, key=len, reverse=True):
        if value.startswith("/"):
            text = text.replace(value, shorten(value))
    return text


def origin(bench, binary, script=None):
    """The head of a result, taken before anything is measured: which script, when, how it was called, on which machine,
    and the commit that the program was built from. A build from a changed tree is no commit's: `changed_tree` says so,
    and so does a line."""
    said = subprocess.run([str(binary), "version", "--json"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if said.returncode != 0:
        raise Refused(f"{binary} version --json: exit code {said.returncode}: {said.stderr[-500:]}")
    version = json.loads(said.stdout)
    commit = built_from(version)
    changed = not re.fullmatch("[0-9a-f]+", commit)
    if changed:
        print(f"{binary} was built from a changed or unknown tree ({commit}); the result says so", file=sys.stderr)
    return {
        "bench": bench,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "changed_tree": changed,
        "version": version,
        "scripts": checkout(),
        "machine": machine(),
        "command": " ".join([script or shorten(pathlib.Path(sys.argv[0]).resolve()), *map(shorten, sys.argv[1:])]),
    }


class Recorder:
    """Runs commands and keeps each one (once) for the result."""

    def __init__(self, timeout_s=None):
        self.commands = []
        self.timeout_s = timeout_s

    def note(self, command):
        words = map(shorten, command)
        line = " ".join(word if len(word) < 100 else "'...'" for word in words)
        if line not in self.commands:
            self.commands.append(line)
        return line

    def run(self, command):
        """What it wrote to stdout and to stderr."""
        line = self.note(command)
        try:
            done = subprocess.run([str(word) for word in command], capture_output=True, text=True,
                                  stdin=subprocess.DEVNULL, timeout=self.timeout_s)
        except subprocess.TimeoutExpired as error:
            raise Refused(f"{line}: no end after {self.timeout_s} s") from error
        if done.returncode != 0:
            said = [text for text in (done.stderr + done.stdout).splitlines() if text.strip()]
            why = [text for text in said if "error" in text.lower() or "not " in text] or said
            why = shorten_in(" | ".join(why[-3:]), command)
            raise Refused(f"{line}: exit code {done.returncode}: {why[-600:]}")
        return done.stdout, done.stderr

    def report(self, command):
        """The object that `lockstep bench decode|prefill --json` prints, its model shortened as in commands."""
        said = json.loads(self.run(command)[0])
        return said | {"model": shorten(said["model"])}
