#!/usr/bin/env python3
"""Sequences that are decoded together beside one alone, by turns: what a batch gains, and what it could gain.

    bench/make_checkpoint.py /tmp/glm47-L4-q4_0.gguf --moe 3 --vocab 4096
    bench/serve/run_batch.py --model /tmp/glm47-L4-q4_0.gguf

Where the weights do not fit the caches, a step takes as long as reading what it needs: of one row the experts that it
chose, of 16 rows all that any of them chose. So 16 sequences can get 16 x bytes(one row) / bytes(16 rows) times the
tokens per second of one. `lockstep bench decode` counts these bytes, product by product, by the experts that the router
really chose. Wanted are 0.85 of that bound. Writes bench/results/serve-batch-MODEL-HOST-DATE.json.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from measuring import ROOT, Recorder, origin  # noqa: E402

WANTED = 0.85


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "build/release/lockstep")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="of a rank")
    parser.add_argument("--tokens", type=int, default=16, help="of each sequence, a repetition")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=3, help="repetitions within a round")
    parser.add_argument("--timeout-s", type=int, default=1800, help="of one command")
    parser.add_argument("--out", type=pathlib.Path)
    return parser.parse_args()


def main():
    options = parse()
    recorder = Recorder(options.timeout_s)
    result = origin("serve batch", options.binary)
    samples, step_bytes, reports, loads = {1: [], options.batch: []}, {}, [], []
    for _ in range(options.rounds):
        loads.append(os.getloadavg()[0])
        for batch in samples:
            report = recorder.report([options.binary, "bench", "decode", "--model", options.model, "--ranks", options.ranks,
                                      "--threads", options.threads, "--collective", "shm", "--tokens", options.tokens,
                                      "--repeat", options.repeat, "--batch", batch, "--json", "--log-level", "warning"])
            test = report["tests"][0]
            samples[batch] += test["tokens_per_second"]["samples"]
            step_bytes.setdefault(batch, []).append(test["product_bytes_per_step"])
            reports.append(report)
            print(f"batch {batch}: {test['tokens_per_second']['median']:.2f} tokens/s, {test['gb_per_s']:.1f} GB/s", flush=True)
    one, many = statistics.median(samples[1]), statistics.median(samples[options.batch])
    one_bytes, many_bytes = statistics.median(step_bytes[1]), statistics.median(step_bytes[options.batch])
    bound = options.batch * one_bytes / many_bytes
    result |= {"model": options.model.name, "batch": options.batch, "rounds": options.rounds, "load_before_round": loads,
               "tokens_per_second": {"one": one, "batch": many, "samples": samples}, "bytes_of_one_row": one_bytes,
               "bytes_of_batch": many_bytes, "gain": many / one, "bound": bound, "wanted": WANTED * bound,
               "met": many / one >= WANTED * bound, "commands": recorder.commands, "lockstep_reports": reports}
    out = options.out or ROOT / "bench/results" / (f"serve-batch-{options.model.stem}-{platform.node()}-"
                                                   f"{result['date'][:10]}.json")
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"bytes of one row {one_bytes / 1e9:.3f} GB, of {options.batch} rows {many_bytes / 1e9:.3f} GB: at most {bound:.2f} x; "
          f"reached {many / one:.2f} x ({many:.2f} against {one:.2f} tokens/s), wanted {WANTED * bound:.2f} x: "
          f"{'met' if result['met'] else 'MISSED'}")
    print(out)
    return 0 if result["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
