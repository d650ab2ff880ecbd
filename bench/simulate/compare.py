#!/usr/bin/env python3
"""Holds `lockstep simulate` against `lockstep serve` under the same trace on this machine.

    bench/make_checkpoint.py /tmp/glm47-L4-q4_0.gguf --moe 3 --vocab 4096
    bench/simulate/compare.py --model /tmp/glm47-L4-q4_0.gguf --rate 0.2 --duration-s 120

Measures the machine with `lockstep doctor`, `bench decode` at several batch sizes and `bench prefill`, has `lockstep
simulate` make a trace and say what two ranks over shared memory would give, and then has `lockstep bench serve` send the
same requests at the same times to a server of these ranks. What is simulated knows nothing of that run. Wanted:
throughput, mean time to the first token and mean time between tokens within 25 %. --rounds repeats the server's run, whose median counts. Writes bench/results/simulate-MODEL-DATE.json: machine,
commit, commands, both sides, differences.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "serve"))

from measuring import ROOT, Recorder, origin  # noqa: E402
from server import Server  # noqa: E402

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
    return said, trace


def play(recorder, arguments, trace):
    """What `lockstep bench serve` says of the trace, sent to a server of its own."""
    with Server(arguments, [*cluster_flags(arguments), *limit_flags(arguments)]) as server:
        load = [arguments.binary, "bench", "serve", "--url", f"http://127.0.0.1:{server.port}", "--request-timeout-ms",
                1000 * arguments.timeout_s, "--json", "--log-level", "warning"]
        warm = trace.with_name("warm.jsonl")
        warm.write_text('{"at_s": 0, "prompt_tokens": 16, "output_tokens": 4}\n')
        recorder.run([*load, "--trace", warm, "--seed", arguments.seed + 1])
        return json.loads(recorder.run([*load, "--trace", trace, "--seed", arguments.seed])[0])


def figures(said):
    """Those that both commands print, under one name each."""
    return {**{name: said[name] for name in ("requests", "completed", "rejected", "seconds", "tokens_per_s")},
            **{f"{name}_{part}_s": said[f"{name}_s"][part] for name in ("ttft", "inter_token", "queue")
               for part in ("mean", "p50", "p90", "p99")}}


def main():
    arguments = parse()
    recorder = Recorder(arguments.timeout_s)
    result = origin("simulate", arguments.binary)
    lines = measure(recorder, arguments)
    with tempfile.TemporaryDirectory() as folder:
        said, trace = simulate(recorder, arguments, pathlib.Path(folder), lines)
        rounds = [play(recorder, arguments, trace) for _ in range(arguments.rounds)]
        trace = [json.loads(line) for line in trace.read_text().splitlines()]
    simulated = figures(said)
    real = {name: statistics.median(figures(one)[name] for one in rounds) for name in simulated}
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
