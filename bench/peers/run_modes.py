#!/usr/bin/env python3
"""Holds `lockstep bench modes` (one node, pipelines, slices) against llama.cpp, by turns in one run.

    bench/make_checkpoint.py /tmp/glm47-L4-q4_0.gguf --moe 3 --vocab 4096
    bench/peers/install_llama_cpp.sh
    bench/peers/run_modes.py --model /tmp/glm47-L4-q4_0.gguf

A round is one round of `lockstep bench modes`, which also says whether all --modes chose the same tokens, then
llama.cpp's llama-bench alone and over two RPC servers by layers and by tensors (--no-llama leaves these out). Every rank
and server has --threads.
Prompts are one chunk and four chunks of --prefill-chunk long: a pipeline of two stages overlaps chunks. Prints medians and
ranges of tokens/s, the part of the time that each rank computes in a pipeline, and the ratios that are wanted of the modes.
Writes bench/results/modes-MODEL-DATE.json: machine, commit, commands, all samples, ratios, and of each mode the last
report, with every rank's times and the bytes that travel.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import engines  # noqa: E402
from measuring import ROOT, Recorder, Refused, origin  # noqa: E402

# (above, below, test, wanted): each pipeline counts on its own.
RATIOS = [("tensor", "pipeline", "decode", 1.8), ("tensor", "pipeline", "prefill, 1 chunk", 1.7),
          ("tensor", "pipeline", "prefill, 4 chunks", 1.1), ("pipeline", "single", "decode", 0.95),
          ("pipeline", "single", "prefill, 1 chunk", None), ("pipeline", "single", "prefill, 4 chunks", None)]
REFERENCE = [("llama.cpp RPC, by layers", "llama.cpp"), ("llama.cpp RPC, by tensors", "llama.cpp RPC, by layers")]


def parse():
    peers = ROOT / "build/peers/llama.cpp-build/bin"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "build/release/lockstep")
    parser.add_argument("--llama-bench", type=pathlib.Path, default=peers / "llama-bench")
    parser.add_argument("--rpc-server", type=pathlib.Path, default=peers / "ggml-rpc-server")
    parser.add_argument("--no-llama", action="store_true")
    parser.add_argument("--modes", nargs="+", default=["single", "pipeline/grpc", "pipeline/shm", "tensor/shm"])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument("--tokens", type=int, default=32, help="to decode")
    parser.add_argument("--prefill-chunk", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--timeout-s", type=int, default=1800, help="of one command")
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    arguments.repeat = 1  # of a test within a round
    return arguments


class Modes:
    """All ways of dividing the model, as `lockstep bench modes` runs them."""

    name = "lockstep bench modes"

    def __init__(self, recorder, arguments):
        self.recorder, self.arguments = recorder, arguments
        self.names, self.reports = arguments.modes, {}

    def measure(self, tests, seed):
        """{mode: {test: samples}}."""
        del seed  # the tokens come from a fixed one
        counts = {kind: ",".join(str(tokens) for one, tokens in tests if one == kind) for kind in ("decode", "prefill")}
        report = self.recorder.report([
            self.arguments.binary, "bench", "modes", "--model", self.arguments.model, "--ranks", self.arguments.ranks,
            "--threads", self.arguments.threads, "--modes", ",".join(self.names), "--tokens", counts["decode"],
            "--prompt-tokens", counts["prefill"], "--prefill-chunk", self.arguments.prefill_chunk, "--repeat", 1, "--json",
            "--log-level", "error"])
        self.reports = {mode["mode"]: mode for mode in report["modes"]}
        return {name: {(test["test"], test["tokens"]): test["tokens_per_second"]["samples"] for test in mode["tests"]}
                for name, mode in self.reports.items()}


def runners_of(recorder, arguments, stack):
    runners = [Modes(recorder, arguments)]
    if arguments.no_llama:
        return runners
    servers = stack.enter_context(engines.RpcServers(recorder, arguments.rpc_server, arguments.ranks, arguments.threads))
    over_rpc = ["-rpc", servers, "-ngl", 99]
    steps = ["-ub", arguments.prefill_chunk]
    for name, more in (("llama.cpp", []), ("llama.cpp RPC, by layers", over_rpc),
                       ("llama.cpp RPC, by tensors", [*over_rpc, "-sm", "tensor", "-fa", "on"])):
        runners.append(engines.LlamaBench(name, recorder, arguments, arguments.threads, [*steps, *more]))
    return runners


def run_rounds(runners, arguments, tests):
    """{name: {test: samples}}, and {name: why it was left out}."""
    samples, refused = {}, {}
    for one in range(arguments.rounds):
        for runner in runners:
            if runner.name in refused:
                continue
            try:
                measured = runner.measure(list(tests.values()), one)
            except Refused as error:
                refused[runner.name] = str(error)
                for name in getattr(runner, "names", [runner.name]):
                    samples.pop(name, None)  # its other rounds were not beside all of the others'
                print(f"{runner.name}: {error}", file=sys.stderr)
                continue
            for name, rates in (measured if hasattr(runner, "names") else {runner.name: measured}).items():
                for label, test in tests.items():
                    samples.setdefault(name, {}).setdefault(label, []).extend(rates[test])
            print(f"round {one + 1}, {runner.name} done", file=sys.stderr, flush=True)
    return samples, refused


def kind_of(name):
    return name.partition("/")[0]


def ratios_of(medians):
    """Of every pair of contestants that a ratio is wanted of; of llama.cpp as a reference, nothing is wanted."""
    pairs = [(above, below, label, wanted) for first, second, label, wanted in RATIOS for above in medians
             for below in medians if (kind_of(above), kind_of(below)) == (first, second)]
    pairs += [(above, below, label, None) for above, below in REFERENCE if above in medians and below in medians
              for label in medians[above]]
    found = []
    for above, below, label, wanted in pairs:
        ratio = medians[above][label] / medians[below][label]
        found.append({"of": above, "to": below, "test": label, "ratio": round(ratio, 3), "wanted": wanted,
                      "met": None if wanted is None else ratio >= wanted})
    return found


def show(result):
    for name, tests in result["contestants"].items():
        for label, test in tests["tests"].items():
            print(f"{name:26} {label:18} {test['median']:9.2f} tokens/s ({test['min']:.2f} .. {test['max']:.2f})")
        for test in tests["report"].get("tests", []):
            times = [{part: us for part, us in rank.items() if part != "rank"} for rank in test["us_per_token"]]
            parts = " ".join(f"{100 * rank['compute'] / sum(rank.values()):.0f} %" for rank in times)
            print(f"{'':26} ranks compute {parts} of the time of {test['test']} {test['tokens']}")
    for one in result["ratios"]:
        wanted = "" if one["wanted"] is None else f", wanted {one['wanted']}: {'met' if one['met'] else 'MISSED'}"
        print(f"{one['test']}: {one['of']} / {one['to']} = {one['ratio']:.2f}{wanted}")


def main():
    arguments = parse()
    chunk = arguments.prefill_chunk
    tests = {"decode": ("decode", arguments.tokens), "prefill, 1 chunk": ("prefill", chunk),
             "prefill, 4 chunks": ("prefill", 4 * chunk)}
    recorder = Recorder(arguments.timeout_s)
    result = origin("modes", arguments.binary) | {
        "model": arguments.model.name, "ranks": arguments.ranks, "threads": arguments.threads, "prefill_chunk": chunk,
        "rounds": arguments.rounds, "tests": tests}
    with contextlib.ExitStack() as stack:
        runners = runners_of(recorder, arguments, stack)
        samples, refused = run_rounds(runners, arguments, tests)
    medians = {name: {label: statistics.median(rates) for label, rates in found.items()}
               for name, found in samples.items()}
    reports = runners[0].reports
    result["contestants"] = {
        name: {"tests": {label: {"median": medians[name][label], "min": min(rates), "max": max(rates), "samples": rates}
                         for label, rates in found.items()}, "report": reports.get(name, {})}
        for name, found in samples.items()}
    result |= {"ratios": ratios_of(medians), "refused": refused, "load_after": os.getloadavg()[0],
               "commands": recorder.commands}
    out = arguments.out or ROOT / "bench/results" / f"modes-{arguments.model.stem}-{result['date'][:10]}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    show(result)
    print(out)
    return 0 if not refused and all(one["met"] is not False for one in result["ratios"]) else 1


if __name__ == "__main__":
    sys.exit(main())
