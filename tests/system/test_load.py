"""`lockstep bench serve` against real servers: what it counts is what they count, and what they do is told."""

import hashlib
import json
import os
import signal
import subprocess
import unittest
import urllib.request

from support import PATIENCE_S, TINY, TestCase, run, start, wait_for


class Server:
    """`lockstep serve`; stopped at the end of the block."""

    def __init__(self, *flags):
        self.process = start("serve", "--model", TINY, "--port", 0, "--grpc-port", 0, "--log-level", "error", *flags)
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1].decode()
        self.ready = json.loads(line)
        self.port = self.ready["port"]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()
            raise

    def metric(self, name):
        with urllib.request.urlopen(self.url + "/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))


def trace_text(requests):
    return "".join(json.dumps(one) + "\n" for one in requests)


class BenchServe(TestCase):
    def load(self, server, *flags, code=0):
        done = run("bench", "serve", "--url", server.url, "--json", *flags)
        self.assertEqual(done.returncode, code, done.stderr.decode())
        said = json.loads(done.stdout)
        self.assertEqual(said["requests"], sum(said[name] for name in
                                               ("completed", "rejected", "refused", "failed", "unfinished")))
        return said

    def test_what_it_counts_is_what_the_server_counts(self):
        trace = self.write("trace.jsonl", trace_text(
            {"at_s": 0.02 * i, "prompt_tokens": 40 + i, "output_tokens": 1 + i % 9, "prefix_group": i % 2,
             "prefix_tokens": 32, "user": "a"} for i in range(30)))
        with Server("--ranks", 2, "--max-num-seqs", 4, "--max-model-len", 512) as server:
            said = self.load(server, "--trace", trace, "--slo-ttft-ms", 60_000)
            self.assertEqual((said["completed"], said["too_short"]), (30, 0))
            self.assertEqual(said["output_tokens"], sum(1 + i % 9 for i in range(30)))
            self.assertEqual(said["prompt_tokens"], sum(40 + i for i in range(30)))
            self.assertEqual(said["output_tokens"], server.metric("vllm:generation_tokens_total"))
            self.assertEqual(said["prompt_tokens"], server.metric("vllm:prompt_tokens_total"))
            self.assertEqual(said["cached_tokens"], server.metric("vllm:prefix_cache_hits_total"))
            self.assertGreater(said["cached_tokens"], 0)
            # Less only where all of an answer came in one event.
            self.assertLessEqual(said["inter_token_s"]["count"], said["output_tokens"] - said["completed"])
            self.assertGreater(said["inter_token_s"]["count"], 0)
            self.assertEqual(said["queue_s"]["count"], 30)
            self.assertEqual(server.metric("vllm:request_queue_time_seconds_count"), 30)
            self.assertAlmostEqual(said["queue_s"]["mean"], server.metric("vllm:request_queue_time_seconds_sum") / 30,
                                   delta=1e-4)
            # The client sees all that the server does, and what is between the two besides.
            for ours, theirs in (("ttft_s", "time_to_first_token"), ("end_to_end_s", "e2e_request_latency")):
                self.assertGreaterEqual(said[ours]["mean"] * 30, server.metric(f"vllm:{theirs}_seconds_sum"))
            self.assertEqual(said["goodput"]["requests"], 30)
            self.assertEqual((said["vocab_size"], said["model"]), (server_vocab(server), server.ready["model"]))
            # The same trace once more finds its prompts in the cache.
            again = self.load(server, "--trace", trace)
            self.assertGreater(again["cached_part"], said["cached_part"])

    def test_it_sends_the_trace_that_simulate_would(self):
        shape = ["--rate", 20, "--duration-s", 1, "--prompt-tokens", 20, "--output-tokens", 5, "--prefix-groups", 2,
                 "--prefix-tokens", 16, "--seed", 7, "--max-model-len", 256]
        simulated, sent = self.path("simulated.jsonl"), self.path("sent.jsonl")
        done = run("simulate", "--hardware", "dgx-spark-2", "--model", "GLM-4.7", "--weights", "q4_k_m", *shape,
                   "--out", simulated, "--json")
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        with Server("--max-model-len", 256) as server:
            said = self.load(server, *shape, "--out", sent)
        with open(simulated, "rb") as one, open(sent, "rb") as other:
            self.assertEqual(one.read(), other.read())
        predicted = json.loads(done.stdout)
        self.assertEqual(said["trace"], predicted["trace"])
        for name in ("requests", "completed", "prompt_tokens", "output_tokens", "offered_s"):
            self.assertEqual(said[name], predicted[name], name)
        for name in ("ttft_s", "inter_token_s", "queue_s"):
            self.assertEqual(set(said[name]), set(predicted[name]))

    def test_overload_is_refused_with_a_time_to_come_again(self):
        # One at a time, and 256 may wait: more than that are here at once.
        trace = self.write("burst.jsonl", trace_text({"at_s": 0, "prompt_tokens": 100, "output_tokens": 20}
                                                     for _ in range(400)))
        with Server("--ranks", 2, "--max-num-seqs", 1, "--max-model-len", 128, "--prefix-cache=false") as server:
            said = self.load(server, "--trace", trace)
        self.assertEqual(said["failures"], [])
        self.assertGreater(said["rejected"], 0)
        self.assertGreaterEqual(said["completed"], 256)
        self.assertEqual(said["refusals"]["429"]["count"], said["rejected"])
        self.assertEqual(said["refusals"]["429"]["with_retry_after"], said["rejected"])
        self.assertGreaterEqual(said["refusals"]["429"]["retry_after_s"]["p50"], 1)
        self.assertGreater(said["queue_s"]["p90"], said["queue_s"]["p50"])

    def test_requests_that_are_too_long_are_told_apart(self):
        trace = self.write("long.jsonl", trace_text([{"at_s": 0, "prompt_tokens": 8, "output_tokens": 4},
                                                     {"at_s": 0, "prompt_tokens": 500, "output_tokens": 4}]))
        with Server("--max-model-len", 64) as server:
            said = self.load(server, "--trace", trace)
        self.assertEqual((said["completed"], said["refused"], said["failed"]), (1, 1, 0))
        self.assertIn("maximum context length is 64", said["refusal"])

    def test_a_server_that_is_killed_breaks_what_runs_and_what_comes(self):
        with Server("--ranks", 2, "--max-num-seqs", 2, "--max-model-len", 2048) as server:
            trace = self.write("killed.jsonl", trace_text(
                [{"at_s": 0.1 * i, "prompt_tokens": 8, "output_tokens": 4 if i == 0 else 1500} for i in range(30)]))
            bench = start("bench", "serve", "--url", server.url, "--trace", trace, "--json")
            self.assertTrue(wait_for(lambda: server.metric("vllm:num_requests_running") >= 2))
            os.killpg(server.process.pid, signal.SIGKILL)
            code, out, err = self.end(bench, 60)
        said = json.loads(out)
        causes = {one["cause"]: one["count"] for one in said["failures"]}
        self.assertLessEqual(set(causes), {"the connection broke", "no connection", "the stream stopped before its end"})
        self.assertGreater(causes.get("no connection", 0), 0, causes)
        self.assertGreater(said["failed"] - causes["no connection"], 0, causes)
        self.assertEqual(said["requests"], 30)
        self.assertEqual(code, 0 if said["completed"] else 1, err)

    def test_a_signal_ends_it_with_the_report_so_far(self):
        with Server("--max-model-len", 256) as server:
            bench = start("bench", "serve", "--url", server.url, "--rate", 20, "--duration-s", 1000, "--prompt-tokens", 8,
                          "--output-tokens", 4)
            self.assertTrue(wait_for(lambda: server.metric("vllm:generation_tokens_total") > 20))
            bench.send_signal(signal.SIGINT)
            code, out, err = self.end(bench)
        self.assertEqual(code, 0, err)
        self.assertRegex(out, r"stopped .* requests were not sent")
        self.assertRegex(out, r"first token +p50")

    def test_keys(self):
        keys = self.write("keys", "alice " + hashlib.sha256(b"secret").hexdigest() + "\n")
        right, wrong = self.write("right", "secret\n"), self.write("wrong", "public\n")
        trace = self.write("one.jsonl", trace_text([{"at_s": 0, "prompt_tokens": 8, "output_tokens": 4}]))
        with Server("--api-key-file", keys) as server:
            said = self.load(server, "--trace", trace, "--api-key-file", right)
            self.assertEqual(said["completed"], 1)
            ask = ("bench", "serve", "--url", server.url, "--trace", trace)
            self.assert_fails(run(*ask), 2, "401", "--api-key-file")
            self.assert_fails(run(*ask, "--api-key-file", wrong), 2, "401", "--api-key-file")
            self.assert_fails(run(*ask, "--api-key-file", keys), 2, "SHA-256")

    def test_tls(self):
        key, certificate = self.path("key.pem"), self.path("cert.pem")
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=localhost", "-addext",
                        "subjectAltName=DNS:localhost,IP:127.0.0.1"], check=True, capture_output=True)
        trace = self.write("two.jsonl", trace_text({"at_s": 0, "prompt_tokens": 8, "output_tokens": 4} for _ in range(2)))
        with Server("--tls-cert", certificate, "--tls-key", key) as server:
            server.url = f"https://localhost:{server.port}"
            said = self.load(server, "--trace", trace, "--tls-ca", certificate)
            self.assertEqual(said["completed"], 2)
            self.assert_fails(run("bench", "serve", "--url", server.url, "--trace", trace), 2, "no TLS connection",
                              "--tls-ca")


def server_vocab(server):
    with urllib.request.urlopen(server.url + "/v1/models", timeout=30) as answer:
        return json.load(answer)["data"][0]["vocab_size"]


if __name__ == "__main__":
    unittest.main()
