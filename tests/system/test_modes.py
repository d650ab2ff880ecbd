"""`lockstep bench modes` as a user runs it: every way of dividing a model on this machine, with added latency, as a
table, JSON and a chart; the same as ranks of a cluster YAML over ssh; modes that fail."""

import json
import os
import unittest
import xml.etree.ElementTree

from support import TINY, TestCase, free_port, run

QUICK = ("--tokens", 4, "--prefill-chunk", 16, "--repeat", 2, "--threads", 1, "--log-level", "error")
PARTS = ("compute", "exchange", "waiting", "rest")


def modes(*flags):
    return run("bench", "modes", "--model", TINY, *QUICK, *flags, timeout=600)


class Modes(TestCase):
    def report(self, *flags):
        result = modes("--json", *flags)
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        return json.loads(result.stdout)

    def test_all_give_the_same_tokens_and_latency_counts_where_ranks_talk(self):
        chart = self.path("modes.svg")
        report = self.report("--ranks", 2, "--collective", "shm", "--added-latency-us", "0,3000", "--chart", chart)
        self.assertEqual([mode["mode"] for mode in report["modes"]],
                         ["single", "pipeline/grpc", "pipeline/shm", "tensor/shm"])
        self.assertIn("ADDED", report["note"])
        # In a round four decoded rows and two of prompts, with each latency; the first round is what others are held to.
        self.assertEqual(report["tokens"], {"compared": (4 * 2 - 1) * 12, "equal": 84})
        for mode in report["modes"]:
            self.assertEqual([(test["test"], test["tokens"], test["added_latency_us"]) for test in mode["tests"]],
                             [(kind, tokens, latency) for latency in (0, 3000)
                              for kind, tokens in (("decode", 4), ("prefill", 16), ("prefill", 64))])
            for test in mode["tests"]:
                self.assertEqual(len(test["tokens_per_second"]["samples"]), 2)
                self.assertEqual(len(test["us_per_token"]), mode["ranks"])
                # One rank sends nothing; two rows of floats a token are the least that others do.
                self.assertEqual(test["wire_bytes_per_token"] > 0, mode["mode"] != "single")
        decode = {mode["mode"]: mode["tests"][3] for mode in report["modes"]}
        of_rank_0 = {name: sum(test["us_per_token"][0][part] for part in PARTS) for name, test in decode.items()}
        # tiny has four layers, so a token takes nine exchanges; each is as long as the latency or longer.
        exchanged = [rank["exchange"] + rank["waiting"] for rank in decode["tensor/shm"]["us_per_token"]]
        self.assertTrue(all(time >= 9 * 3000 for time in exchanged), exchanged)
        # To the second stage, and back with the outcome.
        for name in ("pipeline/grpc", "pipeline/shm"):
            self.assertGreaterEqual(of_rank_0[name], 2 * 3000)
        self.assertEqual(decode["single"]["us_per_token"][0]["waiting"], 0)
        drawn = xml.etree.ElementTree.parse(chart).getroot()
        self.assertEqual(len(list(drawn.iter("{http://www.w3.org/2000/svg}circle"))), 4 + 3 * 4 * 2)

    def test_a_table_over_numbers_of_ranks(self):
        result = modes("--rank-counts", "2,3", "--modes", "pipeline/tcp,tensor/tcp")
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        text = result.stdout.decode()
        self.assertNotIn("ADDED", text)
        for words in ("decode of 4 tokens", "prefill of 64 tokens", "tensor/tcp          3", "rank 2:"):
            self.assertIn(words, text)

    def test_bytes_are_those_of_the_sums(self):
        report = self.report("--ranks", 2, "--modes", "tensor/shm")
        with open(os.path.join(TINY, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        # Each rank sends its part of the embedding and of two sums a layer to the other, float32.
        sums = 1 + 2 * config["num_hidden_layers"]
        self.assertEqual(report["modes"][0]["tests"][0]["wire_bytes_per_token"], 2 * sums * config["hidden_size"] * 4)

    def test_what_cannot_run_is_named_beside_the_others(self):
        result = modes("--ranks", 2, "--modes", "single,tensor/nccl", "--json")
        self.assertEqual(result.returncode, 2)
        self.assertIn("tensor/nccl", result.stderr.decode())
        single, refused = json.loads(result.stdout)["modes"]
        self.assertIn("tests", single)
        self.assertIn("refused", refused)
        self.assertNotIn("tests", refused)

    def test_questions_that_make_no_sense_are_refused(self):
        for mode in ("single/shm", "pipeline", "pipeline/mpi", "tensor", "tensor/grpc", "slices/tcp", ""):
            self.assert_fails(modes("--ranks", 2, "--modes", mode + ",single"), 2, "none of single")
        for flags, words in (((), "--ranks 2"),
                             (("--ranks", 2, "--mode", "pipeline"), "--modes"),
                             (("--ranks", 2, "--wire", "bf16"), "--wire bf16"),
                             (("--ranks", 2, "--added-latency-us", "5,x"), "'x'"),
                             (("--rank-counts", "1"), "2 .. 64")):
            with self.subTest(flags=flags):
                self.assert_fails(modes(*flags), 2, words)
        self.assert_fails(run("bench", "collectives", "--ranks", 2, "--added-latency-us", 5), 2, "--added-latency-us")


class Clusters(TestCase):
    def test_of_a_yaml_are_asked_over_ssh(self):
        # An ssh that goes nowhere: it drops its flags and the host, and runs the command here.
        ssh = self.write("ssh", "#!/bin/sh\nwhile [ \"$1\" = -o ]; do shift 2; done\necho \"$1\" >>\"$0.asked\"\nshift\n"
                                "exec /bin/sh -c \"$*\"\n")
        os.chmod(ssh, 0o700)
        secret = self.write("secret", "ab" * 32)
        os.chmod(secret, 0o600)
        address = f"127.0.0.1:{free_port()}"
        config = self.write("cluster.yaml", f"model: {TINY}\nsecret-file: {secret}\nrendezvous: {address}\n"
                                            "nodes:\n  - address: node-a.invalid\n  - address: node-b.invalid\n")
        result = run("bench", "modes", "--config", config, *QUICK, "--modes", "single,tensor/tcp", "--ssh", ssh, "--json",
                     timeout=600)
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        report = json.loads(result.stdout)
        self.assertEqual(report["nodes"], "node-a.invalid, node-b.invalid")
        self.assertEqual(report["modes"][1]["ranks"], 2)
        with open(ssh + ".asked", encoding="utf-8") as file:
            asked = file.read().split()
        # Of two rounds: the first node alone, then both.
        self.assertEqual((asked.count("node-a.invalid"), asked.count("node-b.invalid")), (4, 2))


if __name__ == "__main__":
    unittest.main()
