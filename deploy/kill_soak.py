#!/usr/bin/env python3
"""Kills one rank of a running generation at a random moment, again and again.

Every round must end within 5 seconds of the kill, with exit code 4, exactly one error sentence that names a rank, and
no process left behind.
"""

import argparse
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

LIMIT_S = 5.0


def children_of(pid):
    path = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def one_round(arguments, draw):
    collective = draw.choice(["tcp", "shm"])
    ranks = draw.randint(2, 4)
    command = [arguments.binary, "run", "--model", arguments.model, "--ranks", str(ranks), "--collective", collective,
               "--raw", "--ignore-eos", "--max-tokens", "16000", "--max-model-len", "16384", "Once"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               text=True)
    for line in process.stderr:
        if "loaded" in line:
            break
    time.sleep(draw.uniform(0, 1.0))
    ranks_running = children_of(process.pid)
    if len(ranks_running) != ranks - 1:
        process.kill()
        return "the ranks were gone before the kill"
    victim = draw.choice(ranks_running)
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    try:
        rest = process.communicate(timeout=30)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        return "hung for 30 s"
    took = time.monotonic() - killed
    errors = [line for line in rest.splitlines() if line.startswith("lockstep: ")]
    time.sleep(0.1)
    if took > LIMIT_S:
        return f"took {took:.1f} s"
    if process.returncode != 4:
        return f"exit code {process.returncode}: {errors}"
    if len(errors) != 1 or f"pid {victim}" not in errors[0]:
        return f"the victim (pid {victim}) is not named once: {errors}"
    if any(alive(pid) for pid in ranks_running):
        return "a rank was left behind"
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    failed = 0
    for number in range(arguments.rounds):
        fault = one_round(arguments, draw)
        if fault:
            failed += 1
            print(f"round {number} (seed {arguments.seed}): {fault}")
    print(f"{arguments.rounds - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
