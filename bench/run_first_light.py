#!/usr/bin/env python3
"""Measures decode and prefill of a synthetic checkpoint at 1 and 2 ranks, beside what the memory and the exchange give.

    cmake --preset release -DLOCKSTEP_BENCH=ON && cmake --build --preset release
    bench/make_checkpoint.py /tmp/glm-2-layers
    bench/run_first_light.py --model /tmp/glm-2-layers

Writes bench/results/first_light-HOST-DATE.json: machine, commit, every command, and per number of ranks the tokens per
second, the memory bandwidth that decoding reached as a share of the one measured just before, and microseconds per
exchange. The share counts weights only (bytes that one token makes all ranks read), not the KV cache.
"""

import argparse
import datetime
import json
import pathlib
import platform
import statistics
import subprocess
import sys

from measuring import ROOT, commit, machine


def run(command, commands):
    commands.append(" ".join(str(word) if len(str(word)) < 80 else "'...'" for word in command))
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        sys.exit(f"{commands[-1]}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def weights_per_token(config):
    """Weights that one decoded token reads, over all ranks: the matrices of its layers and the head."""
    hidden, head = config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    attention = hidden * (queries + 2 * keys) + queries * hidden
    dense = 3 * hidden * config["intermediate_size"]
    experts = config["num_experts_per_tok"] + config["n_shared_experts"]
    moe = 3 * hidden * config["moe_intermediate_size"] * experts + hidden * config["n_routed_experts"]
    layers, first = config["num_hidden_layers"], config["first_k_dense_replace"]
    return layers * attention + first * dense + (layers - first) * moe + hidden * config["vocab_size"]


def generate(arguments, ranks, prompt, tokens, commands):
    command = [arguments.binary, "run", "--model", arguments.model, "--ranks", ranks, "--collective",
               arguments.collective, "--raw", "--json", "--ignore-eos", "--temperature", "0", "--max-tokens", tokens,
               "--max-model-len", "4096", "--max-num-seqs", "1", "--log-level", "warning", prompt]
    return json.loads(run(command, commands))


def exchanges(arguments, ranks, commands):
    """Microseconds of an exchange of one token's hidden state in float32, by transport."""
    found = {}
    for line in run([arguments.bench_folder / "exchange_bench", ranks, 2000], commands).splitlines():
        entry = json.loads(line)
        if entry["bytes"] == 20480:
            found[entry["transport"]] = {"p50": entry["p50_us"], "p99": entry["p99_us"]}
    return found


def measure(arguments, config, ranks, commands):
    bandwidth = json.loads(run([arguments.bench_folder / "membw_bench"], commands))["read_gb_per_s"]
    decode = [generate(arguments, ranks, "Once", arguments.tokens, commands) for _ in range(arguments.repeat)]
    long_prompt = " ".join(f"w{i % 97}" for i in range(arguments.prompt_words))
    prefill = [generate(arguments, ranks, long_prompt, 1, commands) for _ in range(arguments.repeat)]
    decode_rate = statistics.median(one["timings"]["decode_tokens_per_second"] for one in decode)
    token_bytes = weights_per_token(config) * 2
    read = decode_rate * token_bytes / 1e9
    return {
        "ranks": ranks,
        "collective": arguments.collective if ranks > 1 else "single",
        "decode_tokens_per_second": round(decode_rate, 3),
        "decode_tokens": arguments.tokens,
        "prefill_tokens_per_second": round(
            statistics.median(one["timings"]["prefill_tokens_per_second"] for one in prefill), 2),
        "prefill_tokens": prefill[0]["usage"]["prompt_tokens"],
        "weight_bytes_per_token": token_bytes,
        "decode_gb_per_s": round(read, 2),
        "memory_gb_per_s": bandwidth,
        "share_of_memory_bandwidth": round(read / bandwidth, 3),
        "exchange_us": exchanges(arguments, ranks, commands) if ranks > 1 else {},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "build/release/lockstep")
    parser.add_argument("--bench-folder", type=pathlib.Path, default=ROOT / "build/release/bench")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--collective", default="shm", choices=["tcp", "shm"])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompt-words", type=int, default=400)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    config = json.loads((arguments.model / "config.json").read_text())
    commands = []
    result = {
        "bench": "first_light",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "version": json.loads(run([arguments.binary, "version", "--json"], commands)),
        "machine": machine(),
        "model": {key: config[key] for key in ("num_hidden_layers", "first_k_dense_replace", "n_routed_experts",
                                               "hidden_size", "vocab_size")},
        "results": [measure(arguments, config, ranks, commands) for ranks in arguments.ranks],
    }
    result["commands"] = commands
    text = json.dumps(result, indent=1)
    name = f"first_light-{platform.node()}-{result['date'][:10]}.json"
    out = arguments.out or ROOT / "bench/results" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text + "\n")
    for one in result["results"]:
        print(f"{one['ranks']} rank(s): decode {one['decode_tokens_per_second']} tokens/s, "
              f"{one['decode_gb_per_s']} of {one['memory_gb_per_s']} GB/s "
              f"({100 * one['share_of_memory_bandwidth']:.0f} %), "
              f"prefill {one['prefill_tokens_per_second']} tokens/s, exchange {one['exchange_us']}")
    print(out)


if __name__ == "__main__":
    main()
