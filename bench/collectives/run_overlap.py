#!/usr/bin/env python3
"""Prompts whose sums travel while the other half of their rows is computed, beside prompts that wait, by turns.

    bench/make_checkpoint.py /tmp/glm47-L4-q4_0.gguf --moe 3 --vocab 4096
    sudo bench/collectives/run_overlap.py --model /tmp/glm47-L4-q4_0.gguf

Two ranks in two network namespaces, joined by a veth pair that lets so many gigabits a second through either way
(`--gigabits`, by tc's token bucket; 0: as many as it can), and over shared memory. In every round both run once, one
after the other: `lockstep bench prefill` with `--overlap-rows` and with 0. Writes
bench/results/overlap-MODEL-DATE.json: machine, load, commit, commands, all rounds, medians and their ratio.
"""

import argparse
import datetime
import json
import os
import pathlib
import statistics
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from measuring import ROOT, origin, shorten  # noqa: E402
from places import Place, run  # noqa: E402


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--binary", default=str(ROOT / "build/release/lockstep"))
    parser.add_argument("--gigabits", type=float, nargs="*", default=[0, 10, 2.5, 1])
    parser.add_argument("--rows", type=int, default=128, help="--overlap-rows of the one side")
    parser.add_argument("--tokens", type=int, default=512, help="of the prompt, in one step")
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path)
    return parser.parse_args()


def measure(arguments, place, transport, rows, commands):
    words = ["bench", "prefill", "--model", str(arguments.model), "--prompt-tokens", str(arguments.tokens),
             "--prefill-chunk", str(arguments.tokens), "--threads", str(arguments.threads), "--collective", transport,
             "--overlap-rows", str(rows), "--repeat", "1", "--json", "--log-level", "error"]
    started = place.lockstep(arguments.binary, 2, words)
    commands.append([" ".join(map(shorten, command)) for command in started])
    return json.loads(run(started))["tests"][0]["tokens_per_second"]["median"]


def compare(arguments, place, name, transport):
    """One link: medians with and without, and their ratio."""
    samples, commands = {"overlapped": [], "waiting": []}, []
    for _ in range(arguments.rounds):
        for kind, rows in (("overlapped", arguments.rows), ("waiting", 0)):
            samples[kind].append(round(measure(arguments, place, transport, rows, commands), 2))
    medians = {kind: statistics.median(rates) for kind, rates in samples.items()}
    row = {"link": name, "tokens_per_second": medians, "ratio": round(medians["overlapped"] / medians["waiting"], 3),
           "samples": samples, "commands": commands[:2]}
    print(f"{name:24} overlapped {medians['overlapped']:8.2f}, waiting {medians['waiting']:8.2f} tokens/s: {row['ratio']:.2f} x",
          flush=True)
    return row


def main():
    arguments = parse()
    if os.geteuid() != 0:
        sys.exit("run_overlap.py: making network namespaces needs root: run it with sudo")
    result = origin("overlap", arguments.binary)
    with Place(1) as one:
        rows = [compare(arguments, one, "shared memory", "shm")]
    for gigabits in arguments.gigabits:
        with Place(2) as two:
            if gigabits > 0:
                two.limit(gigabits)
            rows.append(compare(arguments, two, f"tcp, {gigabits:g} Gbit/s" if gigabits > 0 else "tcp, unlimited", "tcp"))
    result |= {"model": arguments.model.name, "overlap_rows": arguments.rows, "prompt_tokens": arguments.tokens, "ranks": 2,
               "threads": arguments.threads, "load_after": os.getloadavg()[0], "rows": rows}
    out = arguments.out or ROOT / f"bench/results/overlap-{arguments.model.stem}-{datetime.date.today()}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
