"""The two programs that run_peers.py measures: how each is started for a set of tests, and where its figures stand.

A test is ("decode", tokens) or ("prefill", tokens). `measure(tests, seed)` starts the program as often as it takes and
returns for every test the tokens per second of its repetitions. A program that refuses raises Refused with its last
words.
"""

import json
import random
import socket
import subprocess
import time

from measuring import ROOT


class Refused(Exception):
    """A program ended with an error; str() is what it said last."""


class Recorder:
    """Runs commands and keeps each one (once) for the result file."""

    def __init__(self, timeout_s):
        self.commands = []
        self.timeout_s = timeout_s

    def note(self, command):
        words = (str(word).removeprefix(f"{ROOT}/") for word in command)
        line = " ".join(word if len(word) < 100 else "'...'" for word in words)
        if line not in self.commands:
            self.commands.append(line)
        return line

    def run(self, command):
        line = self.note(command)
        try:
            done = subprocess.run([str(word) for word in command], capture_output=True, text=True,
                                  stdin=subprocess.DEVNULL, timeout=self.timeout_s)
        except subprocess.TimeoutExpired as error:
            raise Refused(f"{line}: no end after {self.timeout_s} s") from error
        if done.returncode != 0:
            said = [text for text in (done.stderr + done.stdout).splitlines() if text.strip()]
            why = [text for text in said if "error" in text.lower() or "not " in text] or said
            raise Refused(f"exit code {done.returncode}: {' | '.join(why[-3:])[-600:]}")
        return done.stdout


class Lockstep:
    """`lockstep run`, one process per figure: the figures are those of its first prompt, without any warm-up, which is
    what a `lockstep bench` would spare; to take that instead, only `one` changes."""

    name = "lockstep"

    def __init__(self, recorder, arguments, words, ranks, threads):
        self.recorder, self.arguments, self.words = recorder, arguments, words
        self.ranks, self.threads = ranks, threads

    def one(self, kind, tokens, seed):
        prompt = "Once"
        if kind == "prefill":
            # Words at random, as llama-bench does: equal ones would all go to the same experts.
            prompt = " " + " ".join(random.Random(seed).choices(self.words, k=tokens))
        command = [self.arguments.binary, "run", "--model", self.arguments.lockstep_model, "--ranks", self.ranks,
                   "--threads", self.threads, "--collective", self.arguments.collective, "--raw", "--json",
                   "--ignore-eos", "--temperature", 0, "--max-tokens", tokens + 1 if kind == "decode" else 1,
                   "--max-model-len", 2048, "--max-num-seqs", 1, "--prefill-chunk", 512, "--log-level", "error",
                   *self.arguments.lockstep_arguments, prompt]
        result = json.loads(self.recorder.run(command))
        if kind == "prefill" and result["usage"]["prompt_tokens"] != tokens:
            raise Refused(f"the prompt has {result['usage']['prompt_tokens']} tokens, not {tokens}")
        return result["timings"][f"{kind}_tokens_per_second"]

    def measure(self, tests, seed):
        return {test: [self.one(*test, seed + repeat) for repeat in range(self.arguments.repeat)] for test in tests}


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
        for entry in json.loads(self.recorder.run(command)):
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
