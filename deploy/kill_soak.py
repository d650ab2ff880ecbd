#!/usr/bin/env python3
"""Kills or stops one rank of a running generation at a random moment, again and again.

Ranks are started in the three ways that users have. The victim is any rank, in prefill or in decode. In time must name
it, by rank and process id, at the beginning of one error sentence:
- one by one, as on several hosts: every survivor, and a rank that was only stopped when it goes on;
- spawned: the process that the user started, once. If that one is stopped it says so when it goes on; if it is killed,
  its ranks die with it and nobody is left to speak;
- by mpirun: the ranks together, at least once, for mpirun may end a rank before it speaks.
All must end, with the exit code of a lost rank (mpirun: with any but 0), and nobody is left behind.
"""

import argparse
import collections
import contextlib
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

KILLED_LIMIT_S = 2.0
PEER_TIMEOUT_S = 1.0
STOPPED_LIMIT_S = PEER_TIMEOUT_S + 1.0
END_LIMIT_S = 5.0
START_LIMIT_S = 30.0
LOST_RANK = 4  # the exit code of a run that lost a rank

PROMPTS = {"prefill": "The cat sat on the mat. " * 1200, "decode": "Once upon a time"}


class Fault(Exception):
    """What went wrong in a round."""


def children_of(pid):
    path = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def came_true(condition, limit_s):
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Cluster:
    """Ranks of one generation. `pids` are the ranks' processes by rank, `processes` those started here."""

    def __init__(self, arguments, way, collective, ranks, phase, folder):
        self.folder = pathlib.Path(folder)
        self.way, self.ranks = way, ranks
        self.processes = []
        self.flags = ["--model", arguments.model, "--collective", collective, "--max-model-len", "32768",
                      "--prefill-chunk", "16", "--overlap-rows", "8", "--peer-timeout-ms", str(int(PEER_TIMEOUT_S * 1000))]
        generate = ["--raw", "--ignore-eos", "--max-tokens", "16000", PROMPTS[phase]]
        if way == "spawned":
            self.start([arguments.binary, "run", "--ranks", str(ranks), *self.flags, *generate])
        elif way == "mpirun":
            as_root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
            self.start(["mpirun", *as_root, "--oversubscribe", "-n", str(ranks), arguments.binary, "run", *self.flags,
                        *generate])
        else:
            config = self.configuration()
            for rank in range(ranks):
                command, rest = ("run", generate) if rank == 0 else ("worker", [])
                self.start([arguments.binary, command, "--config", config, "--rank", str(rank), *self.flags, *rest])

    def configuration(self):
        secret = self.folder / "secret"
        secret.write_text("s" * 32)
        secret.chmod(0o600)
        config = self.folder / "cluster.yaml"
        nodes = "  - address: 127.0.0.1\n" * self.ranks
        config.write_text(f"secret-file: {secret}\nrendezvous: 127.0.0.1:{free_port()}\nnodes:\n{nodes}")
        return str(config)

    def start(self, command):
        number = len(self.processes)
        with open(self.folder / f"out{number}", "wb") as out, open(self.folder / f"err{number}", "wb") as err:
            self.processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                                   start_new_session=True))

    def said(self, number):
        return (self.folder / f"err{number}").read_text(errors="replace")

    def answered(self):
        return (self.folder / "out0").stat().st_size > 0

    def wait_for(self, phase):
        ready = self.answered if phase == "decode" else lambda: "loaded" in self.said(0)
        if not came_true(ready, START_LIMIT_S):
            raise Fault(f"did not start: {self.said(0)}")
        first = self.processes[0].pid
        if self.way == "spawned":
            self.pids = [first, *sorted(children_of(first))]
        elif self.way == "mpirun":
            self.pids = sorted(children_of(first))
        else:
            self.pids = [process.pid for process in self.processes]
        if len(self.pids) != self.ranks:
            raise Fault(f"there are not {self.ranks} ranks: {self.pids}")

    def check_end(self, victim, hit):
        pid = self.pids[victim]
        os.kill(pid, hit)
        limit_s = KILLED_LIMIT_S if hit == signal.SIGKILL else STOPPED_LIMIT_S
        speakers = [number for number, process in enumerate(self.processes) if process.pid != pid]
        self.wait_until_named(victim, speakers, limit_s)
        survivors = [other for other in self.pids if other != pid]
        if not came_true(lambda: not any(map(alive, survivors)), END_LIMIT_S if speakers else limit_s):
            raise Fault("survivors hung")
        if hit == signal.SIGSTOP:
            if alive(pid):
                os.kill(pid, signal.SIGCONT)
            speakers = range(len(self.processes))
            self.wait_until_named(victim, speakers, END_LIMIT_S)
        if not came_true(lambda: not alive(pid), END_LIMIT_S):
            raise Fault("the victim was left behind")
        for number in speakers:
            self.check_last_words(number)

    def wait_until_named(self, victim, numbers, limit_s):
        named = re.compile(rf"^lockstep: rank {victim} \([^)]*pid {self.pids[victim]}\)", re.MULTILINE)
        if not came_true(lambda: all(named.search(self.said(number)) for number in numbers), limit_s):
            raise Fault(f"not named in {limit_s} s: {named.pattern} in {list(map(self.said, numbers))}")

    def check_last_words(self, number):
        try:
            code = self.processes[number].wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise Fault(f"process {number} did not end") from None
        if code == 0 or code != LOST_RANK and self.way != "mpirun":
            raise Fault(f"exit code {code}: {self.said(number)}")
        if self.said(number).count("lockstep: ") != 1 and self.way != "mpirun":
            raise Fault(f"not one sentence: {self.said(number)}")

    def clear(self):
        """Whatever happened, nobody stays."""
        for process in self.processes:
            if process.poll() is None:
                for child in children_of(process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
                process.kill()
                process.wait()


def one_round(arguments, draw, hits):
    way = draw.choice(["spawned", "one by one", "mpirun"])
    collective = draw.choice(["tcp", "shm", "mpi"] if way == "mpirun" else ["tcp", "shm"])
    ranks = draw.randint(2, 4)
    victim = draw.randrange(ranks)
    phase = draw.choice(list(PROMPTS))
    hit = draw.choice([signal.SIGKILL, signal.SIGSTOP])
    what = f"{hit.name} of rank {victim} of {ranks}, {way}, {collective}, {phase}"
    with tempfile.TemporaryDirectory(prefix="lockstep-soak-") as folder:
        cluster = Cluster(arguments, way, collective, ranks, phase, folder)
        try:
            cluster.wait_for(phase)
            time.sleep(draw.uniform(0, 0.4))
            hits[phase, cluster.answered()] += 1
            cluster.check_end(victim, hit)
        except Fault as fault:
            return f"{what}: {fault}"
        finally:
            cluster.clear()
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    hits = collections.Counter()
    failed = 0
    for number in range(arguments.rounds):
        fault = one_round(arguments, draw, hits)
        if fault:
            failed += 1
            print(f"round {number} (seed {arguments.seed}): {fault}", flush=True)
    in_prefill = hits["prefill", False]
    print(f"{in_prefill} hits in prefill, {hits.total() - in_prefill} in decode")
    print(f"{arguments.rounds - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
