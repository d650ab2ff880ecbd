#!/usr/bin/env python3
"""Holds `lockstep simulate` against `lockstep serve` under the same trace on this machine.

    bench/make_checkpoint.py /tmp/glm47-L4-q4_0.gguf --moe 3 --vocab 4096
    bench/simulate/compare.py --model /tmp/glm47-L4-q4_0.gguf --rate 0.2 --duration-s 120

Measures the machine with `lockstep doctor`, `bench decode` at several batch sizes and `bench prefill`, has `lockstep
simulate` make a trace and say what two ranks over shared memory would give, and then sends the same requests at the same
times to a server of these ranks, whether earlier ones were answered or not. The last run is of neither: it is compared
with what was simulated before it. Wanted: throughput, mean time to the first token and mean time between tokens within
25 %. --rounds repeats the server's run, whose median counts. Writes bench/results/simulate-MODEL-DATE.json: machine,
commit, commands, both sides, differences.
"""

import argparse
import json
import pathlib
import random
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "serve"))

from measuring import ROOT, Recorder, origin  # noqa: E402
from server import Server  # noqa: E402
from streams import Call, Loop, request  # noqa: E402

WANTED = 0.25
FIGURES = ["tokens_per_s", "ttft_mean_s", "inter_token_mean_s"]


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "build/release/lockstep")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of a rank")
    parser.add_argument("--collective", default="shm")
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--duration-s", type=float, default=60)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--length-spread", type=float, default=0.5)
    parser.add_argument("--max-num-seqs", type=int, default=8)
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument("--batches", default="1,4,8", help="of bench decode")
    parser.add_argument("--lengths", help="of bench prefill; default: the mean prompt's and twice that")
    parser.add_argument("--repeat", type=int, default=3, help="of each bench")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout-s", type=int, default=1800, help="of one command, and of an answer")
    parser.add_argument("--out", type=pathlib.Path)
    return parser.parse_args()


def cluster_flags(arguments):
    return ["--ranks", arguments.ranks, "--threads", arguments.threads, "--collective", arguments.collective]


def limit_flags(arguments):
    return ["--max-num-seqs", arguments.max_num_seqs, "--max-model-len", arguments.max_model_len]


def measure(recorder, arguments):
    """The lines that --measured takes."""
    quiet = ["--json", "--log-level", "error"]
    lines = []
    if arguments.ranks > 1:
        lines.append(recorder.run([arguments.binary, "doctor", "--ranks", arguments.ranks, "--transports",
                                   arguments.collective, *quiet])[0])
    bench = ["--model", arguments.model, "--repeat", arguments.repeat, *cluster_flags(arguments), *quiet]
    for batch in arguments.batches.split(","):
        lines.append(recorder.run([arguments.binary, "bench", "decode", "--context", arguments.prompt_tokens, "--tokens",
                                   arguments.output_tokens, "--batch", batch, *bench])[0])
    lines.append(recorder.run([arguments.binary, "bench", "prefill", "--prompt-tokens",
                               arguments.lengths or f"{arguments.prompt_tokens},{2 * arguments.prompt_tokens}", *bench])[0])
    return [line.strip() for line in lines]


def simulate(recorder, arguments, folder, lines):
    """What it says, and the trace."""
    measured, trace = folder / "measured.json", folder / "trace.jsonl"
    measured.write_text("\n".join(lines) + "\n")
    said = json.loads(recorder.run([
        arguments.binary, "simulate", "--model", arguments.model, "--measured", measured, "--ranks", arguments.ranks,
        *limit_flags(arguments), "--rate", arguments.rate, "--duration-s", arguments.duration_s, "--prompt-tokens",
        arguments.prompt_tokens, "--output-tokens", arguments.output_tokens, "--length-spread", arguments.length_spread,
        "--seed", arguments.seed, "--out", trace, "--json"])[0])
    return said, [json.loads(line) for line in trace.read_text().splitlines()]


def ids(vocab, count, *key):
    """Token ids, the same for the same key: of all that there are, as bench draws them, for few would choose few experts."""
    draw = random.Random(repr(key))
    return [draw.randrange(vocab) for _ in range(count)]


def body(vocab, one, number):
    shared = one.get("prefix_tokens", 0)
    prompt = (ids(vocab, shared, "group", one.get("prefix_group"))
              + ids(vocab, one["prompt_tokens"] - shared, "own", number))
    return {"prompt": prompt, "max_tokens": one["output_tokens"], "stream": True, "ignore_eos": True, "temperature": 0}


def play(arguments, vocab, trace):
    """Sends the trace to a server of its own; [(request, call)]."""
    ended = []
    with Server(arguments, [*cluster_flags(arguments), *limit_flags(arguments)]) as server:
        loop = Loop(server.port, ended.append)
        warm = Call(request(body(vocab, {"prompt_tokens": 16, "output_tokens": 4}, -1), "/v1/completions"))
        loop.start(warm)
        while loop.calls:
            loop.turn(0.1)
        sent = [request(body(vocab, one, number), "/v1/completions") for number, one in enumerate(trace)]
        calls = []
        begin = time.monotonic() + 0.1
        while len(calls) < len(trace) or loop.calls:
            now = time.monotonic()
            while len(calls) < len(trace) and begin + trace[len(calls)]["at_s"] <= now:
                call = Call(sent[len(calls)])
                call.events = 1  # a completion's first event has its first token already
                call.late = now - begin - trace[len(calls)]["at_s"]
                loop.start(call)
                calls.append(call)
            wait = begin + trace[len(calls)]["at_s"] - time.monotonic() if len(calls) < len(trace) else 0.1
            loop.turn(min(max(wait, 0), 0.1))
            loop.give_up(lambda _: arguments.timeout_s)
    return begin, list(zip(trace, calls))


def percentile(values, part):
    values = sorted(values)
    return values[min(len(values) - 1, int(part * len(values)))] if values else None


def figures(begin, answered):
    whole = [(one, call) for one, call in answered if call.status == 200 and call.error is None and call.first]
    first = [call.first - call.begun for _, call in whole]
    tokens = sum(one["output_tokens"] for one, _ in whole)
    between = sum(one["output_tokens"] - 1 for one, _ in whole)
    return {
        "requests": len(answered), "completed": len(whole),
        "rejected": sum(call.status == 429 for _, call in answered),
        "failed": [str(call.error or call.status) for _, call in answered if call.status != 200 or call.error][:5],
        "seconds": max(call.ended for _, call in answered) - begin,
        "tokens_per_s": tokens / (max(call.ended for _, call in answered) - begin),
        "ttft_mean_s": statistics.mean(first), "ttft_p50_s": percentile(first, 0.5),
        "ttft_p90_s": percentile(first, 0.9), "ttft_p99_s": percentile(first, 0.99),
        # Events may have several tokens: what is between the first and the last is divided evenly.
        "inter_token_mean_s": sum(call.last - call.first for _, call in whole) / max(1, between),
        "latest_s": max(call.late for _, call in answered),
    }


def simulated_figures(said):
    return {"requests": said["requests"], "completed": said["completed"], "rejected": said["rejected"],
            "seconds": said["seconds"], "tokens_per_s": said["tokens_per_s"], "ttft_mean_s": said["ttft_s"]["mean"],
            "ttft_p50_s": said["ttft_s"]["p50"], "ttft_p90_s": said["ttft_s"]["p90"],
            "ttft_p99_s": said["ttft_s"]["p99"], "inter_token_mean_s": said["inter_token_s"]["mean"]}


def main():
    arguments = parse()
    recorder = Recorder(arguments.timeout_s)
    result = origin("simulate", arguments.binary)
    lines = measure(recorder, arguments)
    with tempfile.TemporaryDirectory() as folder:
        said, trace = simulate(recorder, arguments, pathlib.Path(folder), lines)
    rounds = [figures(*play(arguments, said["cluster"]["vocab_size"], trace)) for _ in range(arguments.rounds)]
    simulated = simulated_figures(said)
    real = {name: statistics.median(one[name] for one in rounds) for name in simulated if rounds[0][name] is not None}
    differences = {name: simulated[name] / real[name] - 1 for name in simulated if real.get(name)}
    for name in simulated:
        print(f"{name:20} simulated {simulated[name]:10.4g}  real {real.get(name, 0):10.4g}"
              + (f"  {100 * differences[name]:+6.1f} %" if name in differences else ""))
    met = (simulated["completed"] == real["completed"] and all(abs(differences[name]) <= WANTED for name in FIGURES))
    result |= {"model": arguments.model.name, "wanted": WANTED, "met": met, "compared": FIGURES, "simulated": simulated,
               "real": real, "differences": differences, "rounds": rounds, "trace": trace, "simulation": said,
               "measured": [json.loads(line) for line in lines], "commands": recorder.commands}
    out = arguments.out or ROOT / "bench/results" / f"simulate-{arguments.model.stem}-{result['date'][:10]}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{'met' if met else 'MISSED'}: within {100 * WANTED:.0f} % of the real run; {out}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
