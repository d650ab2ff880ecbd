"""Ranks that die, stop or are interrupted: a named error, the right exit code, nobody left behind."""

import os
import signal
import time
import unittest

from support import MODELS, TINY, TestCase, children, free_port, mpirun, run, start, wait_for

# Long answers: the tiny model is told to ignore its end tokens, so that there is time to interfere.
LONG = ("--max-tokens", "12000", "--ignore-eos", "--temperature", "0", "--raw")


class DeadRanks(TestCase):
    def begin(self, *flags, ranks=3, prefix=(), prompt="Once upon a time"):
        process = start("run", "--model", TINY, *flags, prompt, prefix=prefix)
        self.addCleanup(self.stop, process)
        parent = process.pid
        if prefix:
            self.assertTrue(wait_for(lambda: len(children(parent)) == ranks), "ranks did not start")
            pids = children(parent)
        else:
            self.assertTrue(wait_for(lambda: len(children(parent)) == ranks - 1), "ranks did not start")
            pids = [parent, *children(parent)]
        return process, pids

    @staticmethod
    def stop(process):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.communicate()

    def read_some(self, process, count=20):
        """Waits until the answer streams: the ranks are in decode."""
        self.assertTrue(process.stdout.read(count), "no text came")

    def gone(self, pids):
        def alive(pid):
            try:
                with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
                    return file.read().rpartition(")")[2].split()[0] != "Z"
            except OSError:
                return False
        return wait_for(lambda: not any(alive(pid) for pid in pids), 10)

    def test_a_rank_killed_in_decode_is_named_and_ends_the_others(self):
        for collective in ("tcp", "shm"):
            for victim in (1, 2):
                with self.subTest(collective=collective, victim=victim):
                    process, pids = self.begin("--ranks", 3, "--collective", collective, *LONG)
                    self.read_some(process)
                    os.kill(pids[victim], signal.SIGKILL)
                    began = time.monotonic()
                    code, _, err = self.end(process, 15)
                    self.assertLess(time.monotonic() - began, 5)
                    self.assertEqual(code, 4, err)
                    self.assertIn(f"pid {pids[victim]}", err)
                    self.assertRegex(err, r"rank [12] \(")
                    self.assertTrue(self.gone(pids))

    def test_rank_0_killed_in_decode_ends_the_others(self):
        process, pids = self.begin("--ranks", 3, *LONG)
        self.read_some(process)
        os.kill(pids[0], signal.SIGKILL)
        self.assertTrue(self.gone(pids))

    def test_a_rank_killed_in_prefill_is_named(self):
        prompt = "The cat sat on the mat. " * 1200
        process, pids = self.begin("--ranks", 2, *LONG, "--prefill-chunk", "16", ranks=2, prompt=prompt)
        time.sleep(0.3)
        os.kill(pids[1], signal.SIGKILL)
        code, _, err = self.end(process, 15)
        self.assertEqual(code, 4, err)
        self.assertIn(f"pid {pids[1]}", err)

    def test_under_mpirun_the_loss_is_named_before_mpirun_ends_everyone(self):
        for collective in ("tcp", "mpi"):
            with self.subTest(collective=collective):
                process, pids = self.begin("--collective", collective, *LONG, ranks=2, prefix=mpirun(2))
                self.read_some(process)
                os.kill(pids[1], signal.SIGKILL)
                code, _, err = self.end(process, 15)
                self.assertNotEqual(code, 0)
                self.assertIn(f"pid {pids[1]}", err)
                self.assertTrue(self.gone(pids))

    def test_a_stopped_rank_is_named_after_the_peer_timeout(self):
        process, pids = self.begin("--ranks", 2, *LONG, "--peer-timeout-ms", "1000", ranks=2)
        self.read_some(process)
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

    def test_ctrl_c_ends_all_ranks_with_130(self):
        for stop in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(signal=stop):
                process, pids = self.begin("--ranks", 2, *LONG, ranks=2)
                self.read_some(process)
                os.killpg(process.pid, stop)  # as a terminal does: to the whole group
                code, _, err = self.end(process, 10)
                self.assertEqual(code, 130, err)
                self.assertTrue(self.gone(pids))


class Handshake(TestCase):
    """Ranks started one by one that must not come together."""

    def pair(self, first, second, code, *needles):
        """Starts rank 0 and rank 1 with their flags; both must end with the code and the needles."""
        workers = [start("run" if rank == 0 else "worker", "--config", config, "--rank", rank, *flags,
                         *(("x",) if rank == 0 else ()))
                   for rank, (config, flags) in enumerate((first, second))]
        for worker in workers:
            self.addCleanup(DeadRanks.stop, worker)
        texts = []
        for worker in workers:
            got, _, err = self.end(worker, 20)
            self.assertEqual(got, code, err)
            texts.append(err)
        for needle in needles:
            self.assertIn(needle, "\n".join(texts))
        return texts

    def config(self, name, model, secret_text, port):
        secret = self.write(name + ".secret", secret_text)
        os.chmod(secret, 0o600)
        return self.write(name + ".yaml", f"""
model: {model}
secret-file: {secret}
rendezvous: 127.0.0.1:{port}
start-timeout-ms: 5000
nodes:
  - address: 127.0.0.1
  - address: 127.0.0.1
""")

    def test_different_models_are_refused_with_both_values(self):
        port = free_port()
        first = self.config("a", os.path.join(MODELS, "tiny-a"), "s" * 32, port)
        second = self.config("b", os.path.join(MODELS, "tiny-b"), "s" * 32, port)
        self.pair((first, ()), (second, ()), 2, "model")

    def test_different_settings_are_refused_with_both_values(self):
        port = free_port()
        config = self.config("a", os.path.join(MODELS, "tiny-a"), "s" * 32, port)
        texts = self.pair((config, ("--prefill-chunk", 64)), (config, ("--prefill-chunk", 32)), 2, "64", "32")
        for text in texts:
            self.assertIn("prefill-chunk", text.replace("_", "-"))

    def test_how_sums_are_made_is_for_rank_0_to_say(self):
        config = self.config("a", os.path.join(MODELS, "tiny-a"), "s" * 32, free_port())
        self.pair((config, ("--direct-sum-bytes", 0, "--max-tokens", 3)), (config, ("--direct-sum-bytes", 1 << 30)), 0)
        self.pair((config, ("--gather-sum-bytes", 1 << 30, "--max-tokens", 3)), (config, ("--gather-sum-bytes", 0)), 0)

    def test_which_steps_run_in_halves_is_for_rank_0_to_say(self):
        config = self.config("a", os.path.join(MODELS, "tiny-a"), "s" * 32, free_port())
        self.pair((config, ("--overlap-rows", 2, "--max-tokens", 3)), (config, ("--overlap-rows", 0)), 0)

    def test_other_kernels_come_together_only_if_asked(self):
        config = self.config("a", os.path.join(MODELS, "tiny-a"), "s" * 32, free_port())
        flags = ("--exact", "--temperature", 0, "--max-tokens", 12)
        first, second = (config, (*flags, "--kernels", "ref")), (config, ("--exact", "--kernels", "cpu"))
        self.pair(first, second, 2, "kernels", "ref", "cpu/", "--mixed-kernels")
        self.pair(first, (config, (*second[1], "--mixed-kernels")), 2, "mixed-kernels")
        ranks = [start(command, "--config", config, "--rank", rank, "--mixed-kernels", *flags, *text)
                 for rank, (command, flags, text) in enumerate((("run", first[1], ("x",)), ("worker", second[1], ())))]
        for rank in ranks:
            self.addCleanup(DeadRanks.stop, rank)
        code, text, err = self.end(ranks[0], 20)
        self.assertEqual(code, 0, err)
        self.assertEqual(self.end(ranks[1], 20)[0], 0)
        alone = run("run", "--model", os.path.join(MODELS, "tiny-a"), *flags, "x")
        self.assertEqual(text, alone.stdout.decode())

    def test_a_gpu_that_is_not_there_is_refused_before_anything_starts(self):
        config = self.config("a", os.path.join(MODELS, "tiny-a"), "s" * 32, free_port())
        self.assert_fails(run("run", "--config", config, "--rank", "0", "--device", "cuda:9", "x"), 2, "cuda:9")

    def test_a_wrong_secret_is_refused(self):
        port = free_port()
        model = os.path.join(MODELS, "tiny-a")
        self.pair((self.config("a", model, "s" * 32, port), ()), (self.config("b", model, "t" * 32, port), ()), 2,
                  "secret")

    def test_a_secret_that_others_can_read_is_refused(self):
        config = self.config("a", os.path.join(MODELS, "tiny-a"), "s" * 32, free_port())
        os.chmod(self.path("a.secret"), 0o644)
        self.assert_fails(run("run", "--config", config, "--rank", "0", "x"), 2, "a.secret", "600")

    def test_a_missing_rank_is_named_when_the_start_times_out(self):
        config = self.config("a", os.path.join(MODELS, "tiny-a"), "s" * 32, free_port())
        self.assert_fails(run("run", "--config", config, "--rank", "0", "--start-timeout-ms", "700", "x"), 4, "rank 1")


if __name__ == "__main__":
    unittest.main()
