#!/usr/bin/env python3
"""Kills or stops one rank of a running generation at a random moment, again and again.

Ranks are started in the three ways that users have: one process that spawns the others, one by one as on several
hosts, and by mpirun. The victim is any rank, in prefill or in decode. Each round every survivor must say the victim's process id in
time and end with the exit code of a lost rank; a rank that was only stopped must do the same when it goes on; nobody is
left behind.
"""

import argparse
import collections
import os
import pathlib
import random
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
                      "--prefill-chunk", "16", "--peer-timeout-ms", str(int(PEER_TIMEOUT_S * 1000))]
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
        """Survivors name the victim and end in time; one that was only stopped goes on, says why it is alone, and ends."""
        pid = self.pids[victim]
        others = [number for number, process in enumerate(self.processes) if process.pid != pid]
        os.kill(pid, hit)
        limit_s = KILLED_LIMIT_S if hit == signal.SIGKILL else STOPPED_LIMIT_S
        self.wait_until_named(pid, others, limit_s)
        survivors = [other for other in self.pids if other != pid]
        if not came_true(lambda: not any(map(alive, survivors)), END_LIMIT_S):
            raise Fault("survivors hung")
        if hit == signal.SIGSTOP:
            if alive(pid):
                os.kill(pid, signal.SIGCONT)
            self.wait_until_named(pid, range(len(self.processes)), END_LIMIT_S)
            others = range(len(self.processes))
        if not came_true(lambda: not alive(pid), END_LIMIT_S):
            raise Fault("the victim was left behind")
        for number in others:
            code = self.processes[number].wait(END_LIMIT_S)
            if code != LOST_RANK and self.way != "mpirun":
                raise Fault(f"exit code {code}: {self.said(number)}")

    def wait_until_named(self, pid, numbers, limit_s):
        if not came_true(lambda: all(f"pid {pid}" in self.said(number) for number in numbers), limit_s):
            raise Fault(f"pid {pid} is not named in {limit_s} s: {list(map(self.said, numbers))}")

    def clear(self):
        for process in self.processes:
            for pid in [*children_of(process.pid), process.pid]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
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
