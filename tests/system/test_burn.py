"""`lockstep burn`: mixed requests for a while, and a verdict."""

import json
import os
import signal
import time
import unittest

from support import TINY, TestCase, children, run, start, wait_for

SMALL = ("--max-num-seqs", 4, "--max-model-len", 512)


class Burn(TestCase):
    def wait_until_it_burns(self, process):
        while b"burning for" not in (line := process.stderr.readline()):
            self.assertTrue(line, "it ended before it began")

    def test_ranks_that_stay_right_are_told_ok_with_figures_of_each(self):
        for mode in ((), ("--mode", "pipeline")):
            with self.subTest(mode=mode):
                done = run("burn", "--model", TINY, "--ranks", 2, "--minutes", 0.12, "--json", *SMALL, *mode)
                self.assertEqual(done.returncode, 0, done.stderr.decode())
                report = json.loads(done.stdout)
                self.assertEqual((report["verdict"], report["findings"]), ("ok", []))
                self.assertGreater(report["requests"], 5)
                self.assertGreater(report["repeated"], 0)
                self.assertGreater(report["tokens"], 20)
                self.assertEqual((report["different"], report["failed"]), (0, 0))
                self.assertGreaterEqual(len(report["tokens_per_s"]["parts"]), 3)
                self.assertEqual(len(report["ranks"]), 2)
                for number, rank in enumerate(report["ranks"]):
                    self.assertTrue(rank["name"].startswith(f"rank {number} ("), rank)
                    self.assertGreater(rank["samples"], 3)
                    self.assertGreater(rank["resident_last_bytes"], 1 << 20)
                    self.assertIn("hottest", rank)

    def test_a_lost_rank_fails_it_by_name(self):
        process = start("burn", "--model", TINY, "--ranks", 3, "--minutes", 5, *SMALL)
        self.assertTrue(wait_for(lambda: len(children(process.pid)) == 2))
        self.wait_until_it_burns(process)
        victim = children(process.pid)[1]
        os.kill(victim, signal.SIGKILL)
        code, out, err = self.end(process, 30)
        self.assertEqual(code, 1, err)
        self.assertRegex(out, rf"failed: .*rank [12] \(.*pid {victim}\)")

    def test_a_signal_ends_it_early_with_the_verdict_so_far(self):
        process = start("burn", "--model", TINY, "--ranks", 2, "--minutes", 5, "--json", *SMALL)
        self.assertTrue(wait_for(lambda: len(children(process.pid)) == 1))
        self.wait_until_it_burns(process)
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        code, out, err = self.end(process, 30)
        self.assertEqual(code, 0, err)
        report = json.loads(out)
        self.assertEqual(report["verdict"], "ok")
        self.assertLess(report["seconds"], 60)
        self.assertEqual(len(report["ranks"]), 2)


if __name__ == "__main__":
    unittest.main()
