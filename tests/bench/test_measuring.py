"""bench/measuring.py: a result names the build that was measured and how to measure again."""

import contextlib
import io
import json
import os
import pathlib
import re
import sys
import unittest
from unittest import mock

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "system"))

from support import BINARY, TINY, TestCase, source  # noqa: E402

sys.path[:0] = [source("bench"), source("bench", "peers")]

import measuring  # noqa: E402
import ranks_beside_threads  # noqa: E402
import shard_memory  # noqa: E402


class Measuring(TestCase):
    def program(self, build):
        """A program that says it was built so."""
        said = json.dumps({"version": "0.1.0+1", "build": build, "kernels": "cpu/avx2"})
        path = self.write("program", f"#!/bin/sh\necho '{said}'\n")
        os.chmod(path, 0o755)
        return path

    def origin(self, build):
        warning = io.StringIO()
        with contextlib.redirect_stderr(warning):
            return measuring.origin("trial", self.program(build)), warning.getvalue()

    def test_the_commit_is_the_programs_and_not_the_checkouts(self):
        result, warning = self.origin("0.1.0+1 (commit 0123456789ab, gcc 12.2.0, optimized)")
        self.assertEqual((result["commit"], result["changed_tree"], warning), ("0123456789ab", False, ""))
        self.assertEqual(result["scripts"], measuring.checkout())
        self.assertEqual(result["version"]["kernels"], "cpu/avx2")

    def test_a_build_from_a_changed_or_unknown_tree_says_so(self):
        for commit in ("0123456789ab-dirty", "unknown"):
            with self.subTest(commit=commit):
                result, warning = self.origin(f"0.1.0+1 (commit {commit}, gcc 12.2.0, optimized)")
                self.assertEqual((result["commit"], result["changed_tree"]), (commit, True))
                self.assertIn(commit, warning)
        self.assertEqual(self.origin("no such words")[0]["commit"], "unknown")

    def test_what_the_built_program_prints_is_understood(self):
        with contextlib.redirect_stderr(io.StringIO()):
            result = measuring.origin("trial", BINARY)
        self.assertIn(f"commit {result['commit']},", result["version"]["build"])

    def test_commands_name_no_folders_of_the_machine(self):
        script = str(measuring.ROOT / "bench/load_speed.py")
        with mock.patch.object(sys, "argv", [script, "--model", "/data/a.gguf", "--ranks", "2", "--out=/data/b.json"]):
            result, _ = self.origin("")
        self.assertEqual(result["command"], "bench/load_speed.py --model a.gguf --ranks 2 --out=b.json")
        recorder = measuring.Recorder()
        for _ in range(2):
            self.assertEqual(recorder.run(["/bin/echo", measuring.ROOT / "models/tiny", 3])[0],
                             f"{measuring.ROOT}/models/tiny 3\n")
        self.assertEqual(recorder.commands, ["echo models/tiny 3"])

    def test_what_programs_say_names_no_folders_of_the_machine(self):
        said = self.write("said.json", json.dumps({"model": "/data/a.gguf", "tests": []}))
        self.assertEqual(measuring.Recorder().report(["/bin/cat", said]), {"model": "a.gguf", "tests": []})
        self.assertEqual(measuring.shorten_in("no /data/m/a.gguf", ["x", "--model=/data/m/a.gguf"]), "no a.gguf")
        with self.assertRaises(measuring.Refused) as caught:
            measuring.Recorder().run(["/bin/sh", "-c", "echo error: no $0 >&2; exit 1", "/data/a.gguf"])
        self.assertIn("error: no a.gguf", str(caught.exception))

    def test_no_recorded_result_names_a_folder_of_a_machine(self):
        for path in pathlib.Path(source("bench", "results")).glob("*.json"):
            with self.subTest(result=path.name):
                self.assertEqual(re.findall(r"""(?:^|(?<=[\s"'=:]))/\w[^\s"']*""", path.read_text(encoding="utf-8")), [])

    def test_a_program_that_fails_ends_the_script_with_its_last_words(self):
        with self.assertRaises(measuring.Refused) as caught:
            measuring.Recorder().run(["/bin/sh", "-c", "echo error: no memory >&2; exit 3"])
        self.assertIn("exit code 3: error: no memory", str(caught.exception))
        self.assertIsInstance(caught.exception, SystemExit)


class Scripts(TestCase):
    def run_script(self, script, *flags):
        out = self.path("out.json")
        with mock.patch.object(sys, "argv", ["x.py", "--binary", BINARY, "--out", out, *map(str, flags)]):
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                script.main()
        return json.loads(pathlib.Path(out).read_text(encoding="utf-8"))

    def test_ranks_beside_threads(self):
        result = self.run_script(ranks_beside_threads, "--model", TINY, "--rounds", 2, "--repeat", 1, "--decode", 4,
                                 "--prefill", 16)
        self.assertEqual([(test["test"], test["tokens"]) for test in result["tests"]], [("decode", 4), ("prefill", 16)])
        for test in result["tests"]:
            self.assertEqual([len(samples) for samples in test["samples"].values()], [2, 2])
            rates = test["tokens_per_second"]
            self.assertAlmostEqual(test["ratio"], rates["ranks"] / rates["threads"], 2)
        shapes = {" ".join(line.split()[5:9]) for line in result["commands"]}
        self.assertEqual(shapes, {"--ranks 1 --threads 2", "--ranks 2 --threads 1"})

    def test_shard_memory(self):
        files = self.path("files")
        result = self.run_script(shard_memory, "--model", TINY, "--limit-gib", 0, "--files", files)
        self.assertEqual((result["exit_code"], result["limit_bytes"]), (0, None))
        self.assertGreater(result["peak_resident_bytes"], 1 << 20)
        self.assertGreater(result["written_bytes"], 1 << 20)
        self.assertIsNotNone(result["probe_seconds"])
        self.assertFalse(os.path.exists(files))
        self.assertNotIn(self.directory, json.dumps(result))


if __name__ == "__main__":
    unittest.main()
