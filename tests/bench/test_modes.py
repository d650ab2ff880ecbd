"""bench/peers/run_modes.py: on the tiny model every way is measured, and its ratios are of what it measured."""

import json
import os
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "system"))

from support import TINY, TestCase, source  # noqa: E402

sys.path[:0] = [source("bench"), source("bench", "peers")]

import run_modes  # noqa: E402


class Modes(TestCase):
    def test_ratios_are_of_medians_and_judged(self):
        rates = {"decode": 10.0, "prefill, 1 chunk": 10.0, "prefill, 4 chunks": 10.0}
        found = run_modes.ratios_of({"single": rates, "pipeline/tcp": rates | {"decode": 9.0},
                                     "tensor/shm": rates | {"decode": 18.0}})
        decode = {(one["of"], one["to"]): (one["ratio"], one["met"]) for one in found if one["test"] == "decode"}
        self.assertEqual(decode, {("tensor/shm", "pipeline/tcp"): (2.0, True), ("pipeline/tcp", "single"): (0.9, False)})

    def test_every_way_is_measured(self):
        out = self.path("modes.json")
        modes = ["single", "pipeline/grpc", "pipeline/shm", "tensor/tcp"]
        done = subprocess.run([source("bench", "peers", "run_modes.py"), "--model", TINY, "--binary",
                               os.environ["LOCKSTEP_BINARY"], "--no-llama", "--rounds", "2", "--prefill-chunk", "8",
                               "--tokens", "4", "--modes", *modes, "--out", out], capture_output=True, text=True)
        self.assertIn(done.returncode, (0, 1), done.stderr)  # 1: a ratio was missed, which nobody promises of this model
        with open(out) as file:
            result = json.load(file)
        self.assertEqual(list(result["contestants"]), modes)
        self.assertEqual(result["refused"], {})
        for tests in result["contestants"].values():
            self.assertEqual(set(tests["tests"]), {"decode", "prefill, 1 chunk", "prefill, 4 chunks"})
            self.assertTrue(all(len(test["samples"]) == 2 for test in tests["tests"].values()))
        self.assertEqual(len(result["ratios"]), 12)


if __name__ == "__main__":
    unittest.main()
