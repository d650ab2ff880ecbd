"""`lockstep serve --prefix-cache-dir` ends and starts again: what was computed is found, or all ranks start cold."""

import http.client
import json
import os
import shutil
import signal
import stat
import time
import unittest

from support import TINY, TestCase, start

INTERRUPTED = 130
LONG = "The river runs past the mill, and the mill past the town. " * 20


class Server:
    """Two ranks that keep their cache; ended by SIGTERM at the end of the block."""

    def __init__(self, *flags, prefix=(), model=TINY):
        self.process = start("serve", "--model", model, "--port", 0, "--grpc-port", 0, "--ranks", 2, "--max-num-seqs", 2,
                             *flags, prefix=prefix)
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1].decode()
        self.port = json.loads(line)["port"]

    def talk(self, turns):
        """A conversation: what was said, and how many tokens of each prompt were there."""
        messages = [{"role": "system", "content": LONG}]
        said, cached = [], []
        for turn in range(turns):
            messages.append({"role": "user", "content": f"What is the capital of {['France', 'Italy', 'Japan'][turn % 3]}?"})
            body = {"model": os.path.basename(TINY), "messages": messages, "temperature": 0, "max_tokens": 24,
                    "thinking": {"type": "disabled"}}
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
            connection.close()
            said.append(answer["choices"][0]["message"]["content"])
            cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
            messages.append({"role": "assistant", "content": said[-1]})
        return said, cached


class Restart(TestCase):
    def serve(self, *flags, turns=4, prefix=(), model=TINY, signals=1):
        """Serves a conversation from start to end: what was said, what was there, stderr, exit code."""
        server = Server(*flags, prefix=prefix, model=model)
        try:
            said, cached = server.talk(turns)
        finally:
            server.process.terminate()
            for _ in range(signals - 1):
                time.sleep(0.02)  # or the kernel makes one of two
                os.killpg(server.process.pid, signal.SIGTERM)
            code, _, errors = self.end(server.process)
        return said, cached, errors, code

    def test_a_conversation_goes_on_after_a_restart_or_starts_cold_with_the_rank_that_is_why(self):
        cache = self.path("cache")
        said, cached, errors, code = self.serve(f"--prefix-cache-dir={cache}")
        self.assertEqual((cached[0], code), (0, INTERRUPTED))
        self.assertIn("has nothing yet", errors)
        self.assertRegex(errors, r"prefix cache: kept \d+ blocks")
        self.assertEqual(stat.S_IMODE(os.stat(cache).st_mode), 0o700)
        names = ["rank-0-of-2.kv", "rank-1-of-2.kv"]
        self.assertEqual(sorted(os.listdir(cache)), names)
        for name in names:
            self.assertEqual(stat.S_IMODE(os.stat(os.path.join(cache, name)).st_mode), 0o600)
        shutil.copytree(cache, self.path("first"))

        again = self.serve(f"--prefix-cache-dir={cache}")
        self.assertEqual((again[0], again[3]), (said, code))
        self.assertRegex(again[2], r"prefix cache: restored \d+ blocks")
        self.assertGreater(again[1][0], 200)
        for there, before in zip(again[1], cached):
            self.assertGreaterEqual(there, before)

        file = os.path.join(cache, names[1])
        with open(file, "r+b") as pages:
            pages.seek(-100, os.SEEK_END)
            byte = pages.read(1)
            pages.seek(-100, os.SEEK_END)
            pages.write(bytes([byte[0] ^ 1]))
        damaged = self.serve(f"--prefix-cache-dir={cache}", turns=1)
        self.assertEqual((damaged[:2], damaged[3]), ((said[:1], [0]), code))
        self.assertRegex(damaged[2], r"starting cold: rank 1 \(.*\): .*rank-1-of-2.kv.*damaged")

        shutil.rmtree(cache)
        shutil.copytree(self.path("first"), cache)
        others = self.serve(f"--prefix-cache-dir={cache}", "--kv-cache-dtype=bf16", turns=1)
        self.assertEqual(others[1], [0])
        self.assertIn("'kv-cache-dtype: f32' there, 'kv-cache-dtype: bf16' here", others[2])

    def test_who_signals_a_process_and_its_group_ends_it_in_order(self):
        cache = self.path("cache")  # as GNU timeout, systemd and mpirun do: two signals within milliseconds
        said, _, errors, code = self.serve(f"--prefix-cache-dir={cache}", turns=1, signals=2)
        self.assertEqual(code, INTERRUPTED)
        self.assertRegex(errors, r"prefix cache: kept \d+ blocks")
        again = self.serve(f"--prefix-cache-dir={cache}", turns=1)
        self.assertEqual(again[0], said)
        self.assertGreater(again[1][0], 200)

    def test_weights_of_the_same_shapes_and_other_values_start_cold(self):
        cache, model = self.path("cache"), self.path(os.path.basename(TINY))
        shutil.copytree(TINY, model)
        self.serve(f"--prefix-cache-dir={cache}", turns=1, model=model)
        weights = sorted(name for name in os.listdir(model) if name.endswith(".safetensors"))[0]
        with open(os.path.join(model, weights), "r+b") as file:
            header = int.from_bytes(file.read(8), "little")
            file.seek(8 + header)  # the first value of the first tensor
            byte = file.read(1)
            file.seek(8 + header)
            file.write(bytes([byte[0] ^ 1]))
        _, cached, errors, _ = self.serve(f"--prefix-cache-dir={cache}", turns=1, model=model)
        self.assertEqual(cached, [0])
        self.assertRegex(errors, r"other settings: 'model digest: \w+' there, 'model digest: \w+' here")

    def test_a_library_that_adds_as_it_likes_keeps_nothing(self):
        process = start("serve", "--model", TINY, "--ranks", 2, "--collective=mpi", "--sum-order=any",
                        f"--prefix-cache-dir={self.path('x')}")
        code, _, errors = self.end(process)
        self.assertEqual(code, 2)
        self.assertIn("leave out --sum-order any or --prefix-cache-dir", errors)

    def test_a_disk_without_room_costs_a_warning_and_not_the_files_that_are_there(self):
        cache = self.path("cache")
        said, _, _, code = self.serve(f"--prefix-cache-dir={cache}", turns=1)
        self.assertEqual(code, INTERRUPTED)
        files = {name: os.stat(os.path.join(cache, name)).st_ino for name in os.listdir(cache)}
        # No file may grow beyond 8 kB, and a write that would is an error.
        small = ("bash", "-c", "trap '' XFSZ; ulimit -f 8; exec \"$@\"", "bash")
        full = self.serve(f"--prefix-cache-dir={cache}", turns=2, prefix=small)
        self.assertEqual((full[0][:1], full[3]), (said, code))
        self.assertRegex(full[2], r"prefix cache: not kept: rank 0 \(.*\): .*File too large; make room")
        self.assertEqual({name: os.stat(os.path.join(cache, name)).st_ino for name in os.listdir(cache)}, files)

        self.write("file", "")
        nowhere = self.serve(f"--prefix-cache-dir={self.path('file')}/below", turns=1)
        self.assertEqual((nowhere[:2], nowhere[3]), ((said, [0]), code))
        self.assertIn("cannot make this directory", nowhere[2])

    def test_without_the_cache_there_is_nothing_to_keep(self):
        process = start("serve", "--model", TINY, "--prefix-cache=false", f"--prefix-cache-dir={self.path('x')}")
        code, _, errors = self.end(process)
        self.assertEqual(code, 2)
        self.assertIn("--prefix-cache-dir", errors)


if __name__ == "__main__":
    unittest.main()
