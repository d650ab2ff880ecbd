#!/usr/bin/env python3
"""Measures lockstep beside llama.cpp on the same GGUF file, by turns in one run, and prints ratios.

    cmake --preset release && cmake --build --preset release
    bench/peers/install_llama_cpp.sh
    bench/make_checkpoint.py /tmp/glm47-L4-q4_0.gguf --moe 3 --vocab 4096
    bench/peers/run_peers.py --model /tmp/glm47-L4-q4_0.gguf

Two setups: `threads` (one process of two threads each) and `ranks` (two lockstep ranks of one thread against two RPC
servers of llama.cpp of one thread, dividing by layers and by tensors). In a round every program runs every test once or
--repeat times, after a warm-up and without sampling (llama-bench and `lockstep bench`); rounds follow each other A B A B,
so that a change of the machine's mood meets both. The read bandwidth is what lockstep's runs measure before and after
their tests. Writes bench/results/peers-MODEL-HOST-DATE.json: machine, commits, commands,
all samples, medians, ratios, and the share of the bandwidth that decoding reached, for each program (weights that a
token reads, by the file's own list of tensors, over the time of a token; KV and activations are not counted).
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import engines  # noqa: E402
import gguf_header  # noqa: E402
from measuring import ROOT, Recorder, Refused, origin  # noqa: E402


def parse():
    peers = ROOT / "build/peers"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True, help="GGUF file")
    parser.add_argument("--lockstep-model", type=pathlib.Path, help="other files for lockstep; default: the same")
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "build/release/lockstep")
    parser.add_argument("--llama-bench", type=pathlib.Path, default=peers / "llama.cpp-build/bin/llama-bench")
    parser.add_argument("--rpc-server", type=pathlib.Path, default=peers / "llama.cpp-build/bin/ggml-rpc-server")
    parser.add_argument("--setups", nargs="+", choices=["threads", "ranks"], default=["threads", "ranks"])
    parser.add_argument("--threads", type=int, default=2, help="threads of `threads`, and ranks of `ranks`")
    parser.add_argument("--decode", type=int, nargs="*", default=[32], help="tokens to generate")
    parser.add_argument("--prefill", type=int, nargs="*", default=[128, 512], help="tokens of the prompt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=1, help="repetitions of a test within a round")
    parser.add_argument("--collective", default="shm", choices=["tcp", "shm"])
    parser.add_argument("--lockstep-arguments", nargs=argparse.REMAINDER, default=[],
                        help="further ones, for example --exact; must come last")
    parser.add_argument("--timeout-s", type=int, default=1800, help="of one command")
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    arguments.lockstep_model = arguments.lockstep_model or arguments.model
    if not arguments.decode and not arguments.prefill:
        parser.error("nothing to measure: give --decode or --prefill")
    for file in (arguments.model, arguments.lockstep_model, arguments.binary, arguments.llama_bench,
                 arguments.rpc_server):
        if not file.exists():
            parser.error(f"{file} does not exist; see --help for what makes it")
    return arguments


def programs(setup, recorder, arguments, stack):
    """Who is measured in a setup, lockstep first."""
    threads = arguments.threads
    if setup == "threads":
        return [engines.Lockstep(recorder, arguments, 1, threads),
                engines.LlamaBench("llama.cpp", recorder, arguments, threads)]
    servers = stack.enter_context(engines.RpcServers(recorder, arguments.rpc_server, threads, 1))
    over_rpc = ["-rpc", servers, "-ngl", 99]
    return [engines.Lockstep(recorder, arguments, threads, 1),
            engines.LlamaBench("llama.cpp RPC, by layers", recorder, arguments, 1, over_rpc),
            engines.LlamaBench("llama.cpp RPC, by tensors", recorder, arguments, 1,
                               [*over_rpc, "-sm", "tensor", "-fa", "on"])]


def run_rounds(setup, recorder, arguments, tests):
    """{program: {test: samples}}, {program: why it was left out}, lockstep's own reports and the bandwidths in them,
    loads, what llama-bench says it is."""
    samples, refused, loads, build = {}, {}, [], {}
    with contextlib.ExitStack() as stack:
        runners = programs(setup, recorder, arguments, stack)
        for one in range(arguments.rounds):
            loads.append(os.getloadavg()[0])
            for runner in runners:
                if runner.name in refused:
                    continue
                try:
                    measured = runner.measure(tests, 1000 * one)
                except Refused as error:
                    refused[runner.name] = str(error)
                    print(f"{setup}, {runner.name}: {error}", file=sys.stderr)
                    continue
                for test, rates in measured.items():
                    samples.setdefault(runner.name, {}).setdefault(test, []).extend(rates)
                build = getattr(runner, "builds", None) or build
                said = ", ".join(f"{kind} {tokens}: {statistics.median(rates):.2f}"
                                 for (kind, tokens), rates in measured.items())
                print(f"{setup}, round {one + 1}, {runner.name}: {said} tokens/s", file=sys.stderr, flush=True)
    return samples, refused, runners[0], loads, build


def summarize(setup, tests, rounds, token_bytes):
    """One entry per test: every program's samples and median, and lockstep's ratio to each of the others.
    `token_bytes`: program -> bytes that a token reads; the default is under None."""
    samples, refused, lockstep, loads, _ = rounds
    read = lockstep.read_gb_per_s
    entries = []
    for kind, tokens in tests:
        entry = {"test": kind, "tokens": tokens, "programs": {}, "ratios": {}}
        for name, of_tests in samples.items():
            rates = of_tests[kind, tokens]
            figures = {"tokens_per_second": round(statistics.median(rates), 3),
                       "samples": [round(rate, 3) for rate in rates]}
            read_bytes = token_bytes.get(name, token_bytes[None])
            if name == "lockstep" and kind == "decode" and not read_bytes:
                read_bytes = lockstep.reports["decode"]["tests"][0]["weight_bytes_per_token"]
            if kind == "decode" and read_bytes and read:
                figures["gb_per_s"] = round(figures["tokens_per_second"] * read_bytes / 1e9, 3)
                figures["share_of_bandwidth"] = round(figures["gb_per_s"] / statistics.median(read), 3)
            entry["programs"][name] = figures
        own = entry["programs"].get("lockstep")
        for name, figures in entry["programs"].items():
            if own and name != "lockstep":
                entry["ratios"][name] = round(own["tokens_per_second"] / figures["tokens_per_second"], 3)
        entries.append(entry)
    return {"setup": setup, "read_gb_per_s": statistics.median(read) if read else None, "read_samples": read,
            "load_before_round": loads, "refused": refused, "tests": entries, "lockstep_reports": lockstep.reports}


def show(result):
    for setup in result["results"]:
        print(f"{setup['setup']}: memory reads {setup['read_gb_per_s'] or 0:.1f} GB/s")
        for entry in setup["tests"]:
            for name, figures in entry["programs"].items():
                share = figures.get("share_of_bandwidth")
                share = "" if share is None else f", {100 * share:.0f} % of the memory's bandwidth"
                ratio = f", lockstep is {entry['ratios'][name]:.2f}x" if name in entry["ratios"] else ""
                print(f"  {entry['test']} {entry['tokens']}: {name} {figures['tokens_per_second']:.2f} tokens/s"
                      f"{share}{ratio}")
        for name, why in setup["refused"].items():
            print(f"  {name} was left out: {why}")


def main():
    arguments = parse()
    recorder = Recorder(arguments.timeout_s)
    header = gguf_header.Header(arguments.model)
    tests = [("prefill", count) for count in arguments.prefill] + [("decode", count) for count in arguments.decode]
    llama = arguments.llama_bench.parents[2] / "llama.cpp.json"
    result = origin("peers", arguments.binary) | {
        "llama_cpp": json.loads(llama.read_text()) if llama.exists() else {},
        "model": {
            "file": arguments.model.name,
            "lockstep_file": arguments.lockstep_model.name,
            "architecture": header.metadata["general.architecture"],
            "layers": header.of_model("block_count"),
            "vocabulary": len(header.metadata["tokenizer.ggml.tokens"]),
            "bytes": header.total_bytes(),
            "bytes_by_type": header.bytes_by_type(),
            "bytes_per_token": header.bytes_per_token(),
        },
        "threads": arguments.threads,
        "results": [],
    }
    token_bytes = {None: header.bytes_per_token()}
    if arguments.lockstep_model != arguments.model:
        token_bytes["lockstep"] = 0  # another file: lockstep itself says what it reads
    for setup in arguments.setups:
        rounds = run_rounds(setup, recorder, arguments, tests)
        result["results"].append(summarize(setup, tests, rounds, token_bytes))
        result["llama_cpp"] |= rounds[-1]
    result["commands"] = recorder.commands
    name = f"peers-{arguments.model.stem}-{platform.node()}-{result['date'][:10]}.json"
    out = arguments.out or ROOT / "bench/results" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    show(result)
    print(out)
    if not any("lockstep" in entry["programs"] for setup in result["results"] for entry in setup["tests"]):
        sys.exit("lockstep gave no figure")


if __name__ == "__main__":
    main()
