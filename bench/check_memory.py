#!/usr/bin/env python3
"""Loads a model and decodes at 1 and at 2 ranks, and compares the memory with the plan: at most 3 % apart.

    bench/check_memory.py --model /tmp/flash-q4_0.gguf

Without such a file it is made first, by default GLM-4.7-Flash at full depth in 4 bits (17 GB): `--shape`, `--moe` and
`--format` as in make_checkpoint.py. Two figures of every rank are held against the plan, both without what the process
took before it loaded anything: the memory after decoding (weights, KV cache, scratch and what the backend needs), and
the most while loading. Ends with exit code 1 if one is off, or if there is too little memory or disk to try. Writes the
reports of `lockstep bench decode` to --out.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys

from measuring import ROOT, Recorder, origin


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True, help="a .gguf file, made if it is not there")
    parser.add_argument("--shape", default="flash")
    parser.add_argument("--moe", type=int, default=46)
    parser.add_argument("--format", default="q4_0")
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "build/release/lockstep")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--collective", default="shm", choices=["tcp", "shm"])
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--tolerance", type=float, default=0.03)
    parser.add_argument("--out", type=pathlib.Path, help="JSON")
    return parser.parse_args()


def make(arguments):
    """The file, if it is not there yet. A file that is not whole keeps another name."""
    if arguments.model.exists():
        return
    free = shutil.disk_usage(arguments.model.parent).free
    layers = arguments.moe / 46
    if arguments.shape == "flash" and arguments.format == "q4_0" and free < 18e9 * layers:
        sys.exit(f"{arguments.model.parent} has {free / 1e9:.0f} GB left, the file needs about {17 * layers:.0f}")
    part = arguments.model.with_name(arguments.model.stem + ".part.gguf")
    subprocess.run([sys.executable, ROOT / "bench/make_checkpoint.py", part, "--shape", arguments.shape, "--moe",
                    str(arguments.moe), "--format", arguments.format], check=True)
    part.rename(arguments.model)


def available_memory():
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def measure(recorder, arguments, ranks):
    command = [arguments.binary, "bench", "decode", "--model", arguments.model, "--ranks", ranks, "--threads",
               max(1, (os.cpu_count() or 1) // ranks), "--collective", arguments.collective, "--tokens",
               arguments.tokens, "--context", arguments.context, "--repeat", 1, "--json", "--log-level", "error"]
    return recorder.report(command)


def judge(report, tolerance):
    """One line a rank; whether all are within the tolerance. While loading, less than the plan is no fault: it has room
    for the largest tensor on its way and for the cache, whichever is more."""
    fine = True
    for rank, memory in enumerate(report["memory"]):
        own = memory["resident_bytes"] - memory["process_bytes"]
        good = abs(memory["excess"]) <= tolerance and memory["excess_while_loading"] <= tolerance
        fine = fine and good
        print(f"{report['ranks']} ranks, rank {rank}: planned {memory['planned_bytes'] / 1e6:.1f} MB, holds "
              f"{own / 1e6:.1f} ({100 * memory['excess']:+.2f} %), while loading "
              f"{100 * memory['excess_while_loading']:+.2f} % of the {memory['planned_peak_bytes'] / 1e6:.1f} planned: "
              f"{'as planned' if good else 'NOT as planned'}", flush=True)
    test = report["tests"][0]
    print(f"{report['ranks']} ranks: decode {test['tokens_per_second']['median']:.2f} tokens/s, "
          f"{100 * test['share_of_bandwidth']:.0f} % of the memory's bandwidth", flush=True)
    return fine


def main():
    arguments = parse()
    make(arguments)
    size, available = arguments.model.stat().st_size, available_memory()
    if available < 1.05 * size:
        sys.exit(f"{available / 1e9:.1f} GB of memory are available, too little for {size / 1e9:.1f} GB of weights")
    recorder = Recorder()
    result = origin("memory", arguments.binary)
    reports, fine = [], True
    for ranks in arguments.ranks:
        reports.append(measure(recorder, arguments, ranks))
        fine = judge(reports[-1], arguments.tolerance) and fine
    if arguments.out:
        result |= {"model": arguments.model.name, "as_planned": fine, "reports": reports,
                   "commands": recorder.commands}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
