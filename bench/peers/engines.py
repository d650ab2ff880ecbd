"""The two programs that run_peers.py measures: how each is started for a set of tests, and where its figures stand.

A test is ("decode", tokens) or ("prefill", tokens). `measure(tests, seed)` starts the program as often as it takes and
returns for every test the tokens per second of its repetitions. A program that refuses raises Refused with its last
words.
"""

import json
import socket
import subprocess
import time

from measuring import Refused


class Lockstep:
    """`lockstep bench`: one process for all tests of a kind, each of them warmed up, random tokens and no sampling, as
    llama-bench has it. `read_gb_per_s` collects the bandwidth that every process measured, before and after; `reports`
    keeps the last one of each kind, with the time of every op and the memory."""

    name = "lockstep"

    def __init__(self, recorder, arguments, ranks, threads):
        self.recorder, self.arguments = recorder, arguments
        self.ranks, self.threads = ranks, threads
        self.read_gb_per_s, self.reports = [], {}

    def measure(self, tests, seed):
        del seed  # its tokens come from a fixed one
        samples = {}
        for kind, flag in (("prefill", "--prompt-tokens"), ("decode", "--tokens")):
            counts = [tokens for one, tokens in tests if one == kind]
            if not counts:
                continue
            command = [self.arguments.binary, "bench", kind, "--model", self.arguments.lockstep_model, "--ranks",
                       self.ranks, "--threads", self.threads, "--collective", self.arguments.collective, flag,
                       ",".join(map(str, counts)), "--repeat", self.arguments.repeat, "--prefill-chunk", 512, "--json",
                       "--log-level", "error", *self.arguments.lockstep_arguments]
            report = self.recorder.report(command)
            self.reports[kind] = report
            self.read_gb_per_s += [report["read_gb_per_s"]["before"], report["read_gb_per_s"]["after"]]
            for entry in report["tests"]:
                samples[kind, entry["tokens"]] = entry["tokens_per_second"]["samples"]
        return samples


class LlamaBench:
    """llama-bench: one process for all tests, each of them warmed up; `more` are its further options."""

    def __init__(self, name, recorder, arguments, threads, more=()):
        self.name, self.recorder, self.arguments = name, recorder, arguments
        self.threads, self.more = threads, more
        self.builds = {}

    def measure(self, tests, seed):
        del seed  # it draws its own tokens
        lengths = {kind: [str(count) for one, count in tests if one == kind] or ["0"] for kind in ("decode", "prefill")}
        command = [self.arguments.llama_bench, "-m", self.arguments.model, "-t", self.threads, "-p",
                   ",".join(lengths["prefill"]), "-n", ",".join(lengths["decode"]), "-r", self.arguments.repeat,
                   "-o", "json", *self.more]
        samples = {}
        for entry in json.loads(self.recorder.run(command)[0]):
            test = ("prefill", entry["n_prompt"]) if entry["n_prompt"] else ("decode", entry["n_gen"])
            samples[test] = entry["samples_ts"]
            self.builds = {key: entry.get(key) for key in ("build_commit", "cpu_info", "backends", "model_type")}
        missing = [test for test in tests if test not in samples]
        if missing:
            raise Refused(f"llama-bench printed nothing for {missing}")
        return samples


class RpcServers:
    """llama.cpp's RPC servers on this machine, one per rank; closed at the end of a `with`."""

    def __init__(self, recorder, program, count, threads):
        self.recorder, self.program, self.count, self.threads = recorder, program, count, threads
        self.processes, self.addresses = [], []

    def __enter__(self):
        try:
            for _ in range(self.count):
                self.start()
        except BaseException:
            self.__exit__()
            raise
        return ",".join(self.addresses)

    def start(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [str(word) for word in (self.program, "-H", "127.0.0.1", "-p", port, "-t", self.threads)]
        self.recorder.note([*command[:4], "PORT", *command[5:]])
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        self.processes.append(process)
        self.addresses.append(f"127.0.0.1:{port}")
        for _ in range(100):
            if process.poll() is not None:
                raise Refused(f"{self.program} ended with exit code {process.returncode}")
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.1)
        raise Refused(f"{self.program} does not listen on port {port}")

    def __exit__(self, *_):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
