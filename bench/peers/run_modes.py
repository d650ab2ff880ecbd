#!/usr/bin/env python3
"""Measures one model on the same nodes as one node, as a pipeline and in slices (tensor), by turns in one run.

    bench/make_checkpoint.py /tmp/glm47-L4-q4_0.gguf --moe 3 --vocab 4096
    bench/peers/install_llama_cpp.sh
    bench/peers/run_modes.py --model /tmp/glm47-L4-q4_0.gguf

In a round each of --modes runs `lockstep bench decode` and `bench prefill` once, then llama.cpp's llama-bench alone and
over two RPC servers by layers and by tensors (--no-llama leaves these out). Every rank and server has --threads.
Prompts are one chunk and four chunks of --prefill-chunk long: a pipeline of two stages overlaps chunks. Prints medians and
ranges of tokens/s, the part of the time that each rank computes in a pipeline, and the ratios that are wanted of the modes.
Writes bench/results/modes-MODEL-DATE.json: machine, commit, commands, all samples, ratios, and of each mode the last
report, with the time of every op on rank 0 and of its exchanges. What travels is not counted.
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


def flags_of(mode, ranks):
    """The flags of "single", "pipeline/LINK" and "tensor/COLLECTIVE"."""
    kind, _, link = mode.partition("/")
    if kind == "single" and not link:
        return ["--ranks", "1"]
    if kind == "pipeline" and link in ("grpc", "tcp", "shm", "rdma"):
        return ["--ranks", str(ranks), "--mode", "pipeline", "--stage-link", link]
    if kind == "tensor" and link in ("tcp", "shm", "rdma", "mpi"):
        return ["--ranks", str(ranks), "--mode", "tensor", "--collective", link]
    raise argparse.ArgumentTypeError(f"'{mode}' is none of single, pipeline/grpc|tcp|shm|rdma, tensor/tcp|shm|rdma|mpi")


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
    try:
        for mode in arguments.modes:
            flags_of(mode, arguments.ranks)
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    return arguments


class Mode:
    """One way of dividing the model, as `lockstep bench` runs it."""

    def __init__(self, name, recorder, arguments):
        self.name, self.recorder, self.arguments = name, recorder, arguments
        self.reports = {}

    def measure(self, tests, seed):
        del seed  # the tokens come from a fixed one
        samples = {}
        for kind, flag in (("decode", "--tokens"), ("prefill", "--prompt-tokens")):
            counts = ",".join(str(tokens) for one, tokens in tests if one == kind)
            self.reports[kind] = self.recorder.report([
                self.arguments.binary, "bench", kind, "--model", self.arguments.model, "--threads", self.arguments.threads,
                flag, counts, "--prefill-chunk", self.arguments.prefill_chunk, "--repeat", 1, "--json", "--log-level",
                "error", *flags_of(self.name, self.arguments.ranks)])
            for test in self.reports[kind]["tests"]:
                samples[kind, test["tokens"]] = test["tokens_per_second"]["samples"]
        return samples


def runners_of(recorder, arguments, stack):
    runners = [Mode(name, recorder, arguments) for name in arguments.modes]
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
                samples.pop(runner.name, None)  # its other rounds were not beside all of the others'
                print(f"{runner.name}: {error}", file=sys.stderr)
                continue
            for label, test in tests.items():
                samples.setdefault(runner.name, {}).setdefault(label, []).extend(measured[test])
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
        for report in tests["reports"].values():
            for test in report["tests"]:
                parts = " ".join(f"{100 * part:.0f} %" for part in test.get("occupancy", []))
                if parts:
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
    reports = {runner.name: getattr(runner, "reports", {}) for runner in runners}
    result["contestants"] = {
        name: {"tests": {label: {"median": medians[name][label], "min": min(rates), "max": max(rates), "samples": rates}
                         for label, rates in found.items()}, "reports": reports[name]}
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
