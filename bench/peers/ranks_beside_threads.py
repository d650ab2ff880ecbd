#!/usr/bin/env python3
"""Measures ranks beside threads: N ranks of one thread over shared memory against one rank of N threads, by turns.

    bench/make_checkpoint.py /tmp/glm47-L4-q4_0.gguf --moe 3 --vocab 4096
    bench/peers/ranks_beside_threads.py --model /tmp/glm47-L4-q4_0.gguf

What an exchange costs where both share one machine's cores and memory: decode and prefill by `lockstep bench` (warmed
up, without sampling), one after the other in every round, medians over all rounds. Wanted, as a ratio to the one rank:
decode 0.95, prefill 0.9. Writes bench/results/ranks-beside-threads-MODEL-HOST-DATE.json: machine, commit, commands,
all samples, medians, ratios.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import engines  # noqa: E402
from measuring import ROOT, Recorder, origin  # noqa: E402

WANTED = {"decode": 0.95, "prefill": 0.9}


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "build/release/lockstep")
    parser.add_argument("--ranks", type=int, default=2, help="and threads of the one rank")
    parser.add_argument("--collective", default="shm", choices=["tcp", "shm"])
    parser.add_argument("--decode", type=int, nargs="*", default=[32], help="tokens to generate")
    parser.add_argument("--prefill", type=int, nargs="*", default=[128, 512], help="tokens of the prompt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=2, help="repetitions of a test within a round")
    parser.add_argument("--timeout-s", type=int, default=1800, help="of one command")
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    arguments.lockstep_model, arguments.lockstep_arguments = arguments.model, []
    if arguments.ranks < 2:
        parser.error("--ranks must be at least 2")
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    if not arguments.decode and not arguments.prefill:
        parser.error("nothing to measure: give --decode or --prefill")
    return arguments


def run_rounds(recorder, arguments, tests):
    """{setup: {test: samples}}, and the machine's load before each round."""
    setups = {"threads": engines.Lockstep(recorder, arguments, 1, arguments.ranks),
              "ranks": engines.Lockstep(recorder, arguments, arguments.ranks, 1)}
    samples, loads = {name: {test: [] for test in tests} for name in setups}, []
    for one in range(arguments.rounds):
        loads.append(os.getloadavg()[0])
        for name, program in setups.items():
            measured = program.measure(tests, one)
            for test, rates in measured.items():
                samples[name][test] += rates
            said = ", ".join(f"{kind} {tokens}: {statistics.median(rates):.2f}"
                             for (kind, tokens), rates in measured.items())
            print(f"round {one + 1}, {name}: {said} tokens/s", file=sys.stderr, flush=True)
    return samples, loads


def summarize(samples, tests):
    for kind, tokens in tests:
        medians = {name: statistics.median(of_tests[kind, tokens]) for name, of_tests in samples.items()}
        ratio = medians["ranks"] / medians["threads"]
        yield {"test": kind, "tokens": tokens,
               "tokens_per_second": {name: round(median, 3) for name, median in medians.items()},
               "ratio": round(ratio, 3), "wanted": WANTED[kind], "met": ratio >= WANTED[kind],
               "samples": {name: [round(rate, 3) for rate in of_tests[kind, tokens]]
                           for name, of_tests in samples.items()}}


def main():
    arguments = parse()
    recorder = Recorder(arguments.timeout_s)
    result = origin("ranks beside threads", arguments.binary)
    tests = [("decode", count) for count in arguments.decode] + [("prefill", count) for count in arguments.prefill]
    samples, loads = run_rounds(recorder, arguments, tests)
    result |= {"model": arguments.model.name, "ranks": arguments.ranks, "collective": arguments.collective,
               "rounds": arguments.rounds, "load_before_round": loads, "tests": list(summarize(samples, tests)),
               "commands": recorder.commands}
    name = f"ranks-beside-threads-{arguments.model.stem}-{platform.node()}-{result['date'][:10]}.json"
    out = arguments.out or ROOT / "bench/results" / name
    out.write_text(json.dumps(result, indent=1) + "\n")
    for entry in result["tests"]:
        rates = entry["tokens_per_second"]
        print(f"{entry['test']} {entry['tokens']}: {arguments.ranks} ranks {rates['ranks']:.2f} tokens/s, one rank of "
              f"{arguments.ranks} threads {rates['threads']:.2f}: {entry['ratio']:.2f} x, wanted {entry['wanted']}: "
              f"{'met' if entry['met'] else 'MISSED'}")
    print(out)


if __name__ == "__main__":
    main()
