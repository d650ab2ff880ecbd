#!/usr/bin/env python3
"""Measures decode and prefill of a synthetic checkpoint at 1 and 2 ranks, beside what the memory and the exchange give.

    cmake --preset release && cmake --build --preset release
    bench/make_checkpoint.py /tmp/glm-2-layers
    bench/run_first_light.py --model /tmp/glm-2-layers

Writes bench/results/first_light-HOST-DATE.json: machine, commit, every command, and per number of ranks the tokens per
second, the memory bandwidth that decoding reached as a share of the one measured in the same run, the time of every op
(`lockstep bench`), and microseconds per exchange.
"""

import argparse
import json
import pathlib
import platform

from measuring import ROOT, Recorder, origin


def bench(recorder, arguments, ranks, kind, more):
    command = [arguments.binary, "bench", kind, "--model", arguments.model, "--ranks", ranks, "--collective",
               arguments.collective, "--repeat", arguments.repeat, "--json", "--log-level", "warning", *more]
    return recorder.report(command)


def exchanges(recorder, arguments, ranks):
    """Microseconds of an exchange of one token's hidden state in float32, by transport."""
    rows = json.loads(recorder.run([arguments.binary, "bench", "collectives", "--ranks", ranks, "--sizes", 20480,
                                    "--json", "--log-level", "warning"])[0])
    return {row["transport"]: {"p50": row["p50_us"], "p99": row["p99_us"]} for row in rows
            if row["algorithm"] != "ping-pong"}


def measure(recorder, arguments, ranks):
    decode = bench(recorder, arguments, ranks, "decode", ["--tokens", arguments.tokens])
    prefill = bench(recorder, arguments, ranks, "prefill", ["--prompt-tokens", arguments.prompt_tokens])
    return {
        "ranks": ranks,
        "collective": arguments.collective if ranks > 1 else "single",
        "decode": decode,
        "prefill": prefill,
        "exchange_us": exchanges(recorder, arguments, ranks) if ranks > 1 else {},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "build/release/lockstep")
    parser.add_argument("--bench-folder", type=pathlib.Path, default=ROOT / "build/release/bench")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--collective", default="shm", choices=["tcp", "shm"])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=400)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    config = json.loads((arguments.model / "config.json").read_text())
    recorder = Recorder()
    result = origin("first_light", arguments.binary) | {
        "model": {key: config[key] for key in ("num_hidden_layers", "first_k_dense_replace", "n_routed_experts",
                                               "hidden_size", "vocab_size")},
        "results": [measure(recorder, arguments, ranks) for ranks in arguments.ranks],
    }
    result["commands"] = recorder.commands
    text = json.dumps(result, indent=1)
    name = f"first_light-{platform.node()}-{result['date'][:10]}.json"
    out = arguments.out or ROOT / "bench/results" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text + "\n")
    for one in result["results"]:
        decode, prefill = one["decode"]["tests"][0], one["prefill"]["tests"][0]
        print(f"{one['ranks']} rank(s): decode {decode['tokens_per_second']['median']:.3f} tokens/s, "
              f"{decode['gb_per_s']:.2f} GB/s ({100 * decode['share_of_bandwidth']:.0f} % of what reading reaches), "
              f"prefill {prefill['tokens_per_second']['median']:.2f} tokens/s, exchange {one['exchange_us']}")
    print(out)


if __name__ == "__main__":
    main()
