#!/usr/bin/env python3
"""Holds `lockstep plan` against what lockstep does on this machine, each way of dividing a model.

    bench/make_checkpoint.py /tmp/glm47-L4-q4_0.gguf --moe 3 --vocab 4096
    bench/planner/run_machine.py --model /tmp/glm47-L4-q4_0.gguf

Decodes by `lockstep bench decode` with one rank of two threads (single) and with two ranks of one thread over shared
memory (tensor, and pipeline where the program has --mode), by turns. Predicted from the memory's bandwidth that the same
run measured, from `lockstep doctor`, and from the share of the bandwidth that configs/hardware/presets.yaml has for
lockstep: the measured speed is in none of them. Wanted: within 20 %. --kept FILE... takes the reports of that model in
results that other scripts kept, decoding one sequence, and measures nothing but the links. Writes
bench/results/planner-MODEL-DATE.json: machine, commit, commands, all samples, medians, errors.
"""

import argparse
import collections
import json
import pathlib
import re
import statistics
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from measuring import ROOT, Recorder, origin  # noqa: E402

WANTED = 0.20
RANKS = ["--ranks", "2", "--threads", "1", "--collective", "shm"]


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "build/release/lockstep")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeout-s", type=int, default=900, help="of one command")
    parser.add_argument("--kept", type=pathlib.Path, nargs="+", default=[])
    parser.add_argument("--out", type=pathlib.Path)
    return parser.parse_args()


def ways(recorder, binary):
    """Each way and the flags of the bench that measures it."""
    known = {"single": ["--ranks", "1", "--threads", "2"], "tensor": RANKS}
    if re.search(r"--mode\b", recorder.run([binary, "bench", "--help"])[0]):
        known["pipeline"] = RANKS + ["--mode", "pipeline"]
    return known


def measure(recorder, arguments, flags):
    return recorder.report([arguments.binary, "bench", "decode", "--model", arguments.model, "--tokens",
                            arguments.tokens, "--context", arguments.context, "--repeat", "2", "--json",
                            "--log-level", "error", *flags])


def kept_reports(arguments):
    """(way, file, report) of every report of `bench decode` with this model in the kept results."""
    def reports(value):
        if isinstance(value, dict) and value.get("benchmark") == "decode" and "read_gb_per_s" in value:
            yield value
        elif isinstance(value, (dict, list)):
            for part in value.values() if isinstance(value, dict) else value:
                yield from reports(part)

    for file in arguments.kept:
        for report in reports(json.loads(file.read_text())):
            test = report["tests"][0]
            if pathlib.Path(report["model"]).name == arguments.model.name and test.get("batch", 1) == 1:
                yield "single" if report["ranks"] == 1 else "tensor", file.name, report


def predict(recorder, arguments, way, doctor, report):
    """Tokens/s that the plan says, from what other commands printed."""
    test = report["tests"][0]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        for line in ([report] if way == "single" else [doctor, report]):
            file.write(json.dumps(line) + "\n")
        file.flush()
        command = [arguments.binary, "plan", "--model", arguments.model, "--measured", file.name, "--context",
                   test["context"] + test["tokens"] // 2, "--json"]
        said = json.loads(recorder.run(command)[0])
    return said[way]["decode_tokens_per_s"]


def compare(recorder, arguments, way, doctor, report):
    rate = report["tests"][0]["tokens_per_second"]["median"]
    said = predict(recorder, arguments, way, doctor, report)
    print(f"{way}: measured {rate:.2f}, predicted {said:.2f} tokens/s ({100 * (said / rate - 1):+.0f} %)",
          file=sys.stderr, flush=True)
    return {"measured": rate, "predicted": said, "read_gb_per_s": report["read_gb_per_s"]}


def collect(recorder, arguments):
    """{way: samples}, kept or measured now."""
    doctor = json.loads(recorder.run([arguments.binary, "doctor", *RANKS[:2], "--transports", "shm", "--json",
                                      "--log-level", "error"])[0])
    samples = collections.defaultdict(list)
    for way, name, report in kept_reports(arguments):
        samples[way].append(compare(recorder, arguments, way, doctor, report) | {"file": name})
    for _ in range(0 if arguments.kept else arguments.rounds):
        for way, flags in ways(recorder, arguments.binary).items():
            samples[way].append(compare(recorder, arguments, way, doctor, measure(recorder, arguments, flags)))
    return samples


def main():
    arguments = parse()
    recorder = Recorder(arguments.timeout_s)
    result = origin("planner", arguments.binary)
    samples = collect(recorder, arguments)
    result["model"] = arguments.model.name
    result["results"] = []
    for way, found in samples.items():
        error = statistics.median(one["predicted"] / one["measured"] - 1 for one in found)
        result["results"].append({"way": way, "measured": statistics.median(one["measured"] for one in found),
                                  "predicted": statistics.median(one["predicted"] for one in found),
                                  "error": error, "wanted": WANTED, "met": abs(error) <= WANTED, "samples": found})
        print(f"{way}: median error {100 * error:+.1f} %")
    result["commands"] = recorder.commands
    out = arguments.out or ROOT / "bench/results" / f"planner-{arguments.model.stem}-{result['date'][:10]}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(out)
    return 0 if all(one["met"] for one in result["results"]) else 1


if __name__ == "__main__":
    sys.exit(main())
