"""`--mode pipeline` as a user runs it: the answers of tensor mode, over gRPC and over our transports, from processes of
`--ranks` and of mpirun; stages that die; what a pipeline refuses."""

import concurrent.futures
import json
import os
import signal
import unittest
import urllib.request

from support import (GOLDENS, MODELS, TINY, TestCase, Tensors, children, free_port, mpirun, relative_error, run, start,
                     wait_for)

PIPELINE = ("--mode", "pipeline")
GREEDY = ("--temperature", "0", "--raw", "--ignore-eos")
LONG = (*GREEDY, "--max-tokens", "12000")


class Answers(TestCase):
    def ids(self, *flags, prefix=()):
        result = run("run", "--model", TINY, "--json", *flags, "--max-tokens", 24, "--prefill-chunk", 4,
                     "The cat sat on the mat, and the dog was there too.", prefix=prefix)
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        answer = json.loads(result.stdout)
        self.said = result.stderr.decode()
        return answer["text"], answer["ids"]

    def test_are_those_of_one_rank(self):
        drawn = ("--raw", "--ignore-eos", "--seed", 7, "--temperature", 1.2, "--top-p", 0.9, "--presence-penalty", 0.5,
                 "--repetition-penalty", 1.1)
        for sampling, ways in ((GREEDY, (("--ranks", 2), ("--ranks", 2, "--stage-link", "shm"))),
                               (drawn, (("--ranks", 3, "--stage-link", "tcp"),))):
            want = self.ids(*sampling)
            for flags in ways:
                with self.subTest(flags=flags):
                    self.assertEqual(self.ids(*PIPELINE, *flags, *sampling), want)
                    self.assertIn("of the steps' time", self.said)

    def test_of_stages_of_two_ranks_are_those_of_two_ranks(self):
        want = self.ids("--ranks", 2, *GREEDY)
        self.assertEqual(self.ids(*PIPELINE, "--ranks", 4, "--stages", 2, *GREEDY), want)

    def test_under_mpirun_are_those_of_one_rank(self):
        want = self.ids(*GREEDY)
        self.assertEqual(self.ids(*PIPELINE, *GREEDY, prefix=mpirun(2)), want)
        self.assertEqual(self.ids(*PIPELINE, "--collective", "mpi", *GREEDY, prefix=mpirun(2)), want)

    def test_logits_have_the_bits_of_one_rank(self):
        golden = Tensors(os.path.join(GOLDENS, "tiny-b.safetensors"))
        tokens = self.write("tokens.json", json.dumps([list(golden.values("main.input_ids")), [5, 6, 7]]))
        model = os.path.join(MODELS, "tiny-b")

        def logits(*flags):
            out = self.path("out.safetensors")
            result = run("logits", "--model", model, "--tokens", tokens, "--out", out, "--dump-hidden", *flags)
            self.assertEqual(result.returncode, 0, result.stderr.decode())
            return Tensors(out)

        want = logits()
        self.assertLessEqual(relative_error(want.values("logits.0"), golden.values("main.logits")), 2e-5)
        for flags in (("--ranks", 3), ("--ranks", 2, "--stage-link", "tcp", "--shares", "5,1", "--prefill-chunk", 8)):
            got = logits(*PIPELINE, *flags, "--together")
            self.assertEqual(got.names(), want.names())
            for name in want.names():
                self.assertEqual(got.raw(name), want.raw(name), flags)

    def test_bench_says_what_part_of_the_time_every_stage_computes(self):
        for benchmark in ("decode", "prefill"):
            result = run("bench", benchmark, "--model", TINY, *PIPELINE, "--ranks", 2, "--tokens", 8,
                         "--prompt-tokens", 64, "--prefill-chunk", 16, "--repeat", 1, "--json")
            self.assertEqual(result.returncode, 0, result.stderr.decode())
            report = json.loads(result.stdout)
            self.assertEqual((report["mode"], report["stages"], report["stage_link"]), ("pipeline", 2, "grpc"))
            for test in report["tests"]:
                self.assertEqual(len(test["occupancy"]), 2)
                self.assertTrue(all(0 < part < 1 for part in test["occupancy"]), test["occupancy"])


class Serving(TestCase):
    def complete(self, flags, prompts):
        process = start("serve", "--model", TINY, "--port", 0, "--grpc-port", 0, "--prefill-chunk", 8, *flags)
        try:
            ready = json.loads(process.stdout.readline())

            def ask(prompt):
                body = {"prompt": prompt, "max_tokens": 24, "temperature": 0, "ignore_eos": True}
                request = urllib.request.Request(f"http://127.0.0.1:{ready['port']}/v1/completions",
                                                 json.dumps(body).encode(), {"Content-Type": "application/json"})
                with urllib.request.urlopen(request, timeout=60) as reply:
                    return json.load(reply)["choices"][0]["text"]

            with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
                texts = list(pool.map(ask, prompts))
            process.terminate()
            code, _, err = self.end(process)
            self.assertEqual(code, 130, err)
            return texts
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()

    def test_requests_at_the_same_time_get_the_answers_of_one_rank(self):
        prompts = ["Once upon a time", "The capital of France is a city that", "One two three four five six seven"]
        want = self.complete((), prompts)
        self.assertEqual(self.complete((*PIPELINE, "--ranks", 3), prompts), want)
        self.assertEqual(self.complete((*PIPELINE, "--ranks", 2, "--stage-link", "tcp"), prompts), want)


class LostStages(TestCase):
    def begin(self, ranks, *flags):
        process = start("run", "--model", TINY, *PIPELINE, "--ranks", ranks, *flags, *LONG, "Once upon a time")
        self.addCleanup(self.stop, process)
        self.assertTrue(wait_for(lambda: len(children(process.pid)) == ranks - 1), "ranks did not start")
        self.assertTrue(process.stdout.read(20), "no text came")
        return process, [process.pid, *children(process.pid)]

    @staticmethod
    def stop(process):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.communicate()

    def test_a_killed_stage_is_named_by_every_other_rank_and_ends_it(self):
        for link, victim, ranks, flags in (("grpc", 1, 3, ()), ("grpc", 2, 3, ()), ("tcp", 1, 3, ()),
                                           ("grpc", 2, 4, ("--stages", 2))):
            with self.subTest(link=link, victim=victim, ranks=ranks):
                secret = self.write("secret", "s" * 32)
                os.chmod(secret, 0o600)
                config = self.write("cluster.yaml", f"model: {TINY}\nsecret-file: {secret}\nrendezvous: 127.0.0.1:"
                                    f"{free_port()}\nnodes:\n" + "  - address: 127.0.0.1\n" * ranks)
                processes = []
                for rank in range(ranks):
                    last = (*LONG, "Once upon a time") if rank == 0 else ()
                    processes.append(start("run" if rank == 0 else "worker", "--config", config, "--rank", rank,
                                           *PIPELINE, "--stage-link", link, *flags, *last))
                    self.addCleanup(self.stop, processes[-1])
                self.assertTrue(processes[0].stdout.read(20), "no text came")
                processes[victim].kill()
                for rank in range(ranks):
                    if rank == victim:
                        continue
                    code, _, err = self.end(processes[rank], 15)  # far below any timeout of an exchange
                    self.assertEqual(code, 4, err)
                    self.assertRegex(err, rf"lockstep: .*rank {victim} \([^)]*pid {processes[victim].pid}\)")

    def test_a_stopped_stage_is_named_after_the_peer_timeout(self):
        for link in ("grpc", "tcp"):
            with self.subTest(link=link):
                process, pids = self.begin(2, "--stage-link", link, "--peer-timeout-ms", "1000")
                os.kill(pids[1], signal.SIGSTOP)
                try:
                    code, _, err = self.end(process, 20)
                finally:
                    try:
                        os.kill(pids[1], signal.SIGKILL)
                    except ProcessLookupError:
                        pass
                self.assertEqual(code, 4, err)
                self.assertIn(f"pid {pids[1]}", err)

    def test_ctrl_c_ends_all_stages(self):
        process, _ = self.begin(2)
        os.killpg(process.pid, signal.SIGINT)
        code, _, err = self.end(process, 10)
        self.assertEqual(code, 130, err)


class Refusals(TestCase):
    def refuse(self, *flags, needles, model=TINY, command="run"):
        result = run(command, "--model", model, *flags, *(("x",) if command == "run" else ()))
        self.assert_fails(result, 2, *needles)

    def test_name_what_a_pipeline_does_not_do(self):
        two = (*PIPELINE, "--ranks", 2)
        self.refuse(*two, "--wire", "bf16", needles=("--wire", "tensor"))
        self.refuse(*PIPELINE, "--ranks", 3, "--stages", 2, needles=("3 ranks", "--stages"))
        self.refuse(*two, "--shares", "1,1,1", needles=("--shares", "per stage: 2"))
        self.refuse(*two, "--shares", "1,0", needles=("--shares",))
        self.refuse("--ranks", 2, "--stages", 2, needles=("--mode pipeline",))
        self.refuse(*PIPELINE, "--ranks", 5, model=os.path.join(MODELS, "tiny-a"), needles=("5 stages", "4"))
        self.refuse(*PIPELINE, "--ranks", 4, "--stages", 2, "--collective", "mpi", needles=("--collective mpi",))
        result = run("serve", "--model", TINY, *two, "--recover")
        self.assert_fails(result, 2, "--recover", "tensor")
        tokens = self.write("tokens.json", "[[1,2,3]]")
        result = run("logits", "--model", os.path.join(MODELS, "tiny-b"), *two, "--draft", "--tokens", tokens, "--out",
                     self.path("out"))
        self.assert_fails(result, 2, "--draft", "tensor")

    def test_files_of_ranks_are_refused_by_name(self):
        files = self.path("files")
        result = run("shard", "--model", os.path.join(MODELS, "tiny-a"), "--ranks", 2, "--out", files)
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        self.refuse(*PIPELINE, "--ranks", 2, model=files, needles=("files of ranks", "tensor"))


if __name__ == "__main__":
    unittest.main()
