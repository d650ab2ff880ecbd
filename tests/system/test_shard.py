"""`lockstep shard`: files of ranks, what is computed from them, and what goes wrong."""

import json
import os
import resource
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
import unittest
import urllib.request

from support import BINARY, MODELS, TestCase, Tensors, relative_error, run, source, start

TOKENS = [[(index * 7) % 200 for index in range(30)]]


def names(ranks):
    return [f"rank-{rank}-of-{ranks}.lockstep" for rank in range(ranks)]


def printed_command(result):
    """The last `lockstep verify` that stderr advises, as arguments."""
    return shlex.split(result.stderr.decode().rpartition("lockstep verify ")[2].splitlines()[0])


class Shard(TestCase):
    def shard(self, model, out, *flags):
        result = run("shard", "--model", os.path.join(MODELS, model), "--out", out, *flags)
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        self.assertEqual(result.stdout, b"")
        return result

    def logits(self, model, *flags):
        tokens = self.write("tokens.json", json.dumps(TOKENS))
        out = self.path("out.safetensors")
        result = run("logits", "--model", model, "--tokens", tokens, "--out", out, "--dump-hidden", *flags)
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        with open(out, "rb") as file:
            return file.read()

    def contents(self, directory, ranks):
        read = []
        for name in names(ranks):
            with open(os.path.join(directory, name), "rb") as file:
                read.append(file.read())
        return read

    def test_ranks_compute_the_same_bits_from_their_files(self):
        for model in ("tiny-a", "tiny-k-Q4_K_M.gguf", "tiny-a-fp8", "tiny-flash"):
            for flags in (("--ranks", 2), ("--ranks", 3, "--shares", "3,1,2")):
                with self.subTest(model=model, flags=flags):
                    out = self.path(f"{model}-{flags[1]}")
                    self.shard(model, out, *flags)
                    self.assertEqual(sorted(name for name in os.listdir(out) if name.endswith(".lockstep")),
                                     names(flags[1]))
                    self.assertEqual(self.logits(out, *flags), self.logits(os.path.join(MODELS, model), *flags))

    def test_each_rank_fetches_its_own_slices_alone(self):
        ranks, shares = 3, "3,1,2"
        for form in ("bf16", "fp8", "nvfp4", "mlx4", "q4_k_m"):
            with self.subTest(form=form):
                model = self.path(f"wide-{form}" + (".gguf" if form == "q4_k_m" else ""))
                subprocess.run([sys.executable, source("bench", "make_checkpoint.py"), model, "--shape", "mid",
                                "--format", form, "--moe", "1", "--experts", "8", "--vocab", "2048"],
                               check=True, capture_output=True)
                local, remote = self.path(f"local-{form}"), self.path(f"remote-{form}")
                result = run("shard", "--model", model, "--out", local, "--ranks", ranks, "--shares", shares)
                self.assertEqual(result.returncode, 0, result.stderr.decode())
                whole = os.path.getsize(model) if form == "q4_k_m" else sum(
                    os.path.getsize(os.path.join(model, name)) for name in os.listdir(model))
                url, end = self.serve(self.directory if form == "q4_k_m" else model)
                for rank in range(ranks):
                    result = run("shard", "--from", f"{url}/{os.path.basename(model)}" if form == "q4_k_m" else url,
                                 "--out", remote, "--ranks", ranks, "--shares", shares, "--rank", rank)
                    self.assertEqual(result.returncode, 0, result.stderr.decode())
                self.assertEqual(self.contents(remote, ranks), self.contents(local, ranks))
                # Routers and norms are everybody's, and reads are rounded; whole rows would be 1.7 times the whole.
                # Scales are so small here that the blocks around them weigh more than what is read of them.
                if form == "bf16":
                    self.assertLess(end(), 1.25 * whole)

    def test_the_server_of_a_checkpoint_gives_its_probe_prompt_along(self):
        model = os.path.join(MODELS, "tiny-k")
        self.shard("tiny-k", self.path("local"), "--ranks", 2)
        fetch = ("--ranks", 2, "--out", self.path("remote"))
        url, _ = self.serve(model, "--record")
        for rank in range(2):
            result = run("shard", "--from", url, "--rank", rank, *fetch)
            self.assertEqual(result.returncode, 0, result.stderr.decode())
            self.assertEqual(b"as the server computed them" in result.stderr, rank == 0)  # and then it is there
            self.assertNotIn(b"no probe prompt recorded", result.stderr)
        with open(self.path("local/probe.json"), "rb") as one, open(self.path("remote/probe.json"), "rb") as other:
            self.assertEqual(one.read(), other.read())
        result = run("verify", "--model", self.path("remote"), "--ranks", 2)
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        # Weights that are quantized on the way have other logits.
        result = run("shard", "--from", url, "--rank", 0, "--ranks", 2, "--quantize", "q8_0", "--out",
                     self.path("quantized"))
        self.assertIn(b"no probe prompt recorded", result.stderr)
        self.assertFalse(os.path.exists(self.path("quantized/probe.json")))
        # Nor is a probe prompt of another checkpoint taken.
        other = self.path("other")
        shutil.copytree(os.path.join(MODELS, "tiny-a"), other)
        with urllib.request.urlopen(url + "/probe.json") as answer:
            self.write("other/probe.json", answer.read().decode())
        url, _ = self.serve(other)
        for text, said in ((None, b"is of another checkpoint"), ("{}", b"the server's probe prompt is not used")):
            if text is not None:
                self.write("other/probe.json", text)
            result = run("shard", "--from", url, "--rank", 0, "--ranks", 2, "--out", self.path("of-other"))
            self.assertEqual(result.returncode, 0, result.stderr.decode())
            self.assertIn(said, result.stderr)
            self.assertFalse(os.path.exists(self.path("of-other/probe.json")))
        # One of other files in --out would be refused by every start.
        shutil.copy(self.path("local/probe.json"), self.path("of-other"))
        run("shard", "--from", url, "--rank", 0, "--ranks", 2, "--out", self.path("of-other"))
        self.assertFalse(os.path.exists(self.path("of-other/probe.json")))
        # Files of ranks have their own.
        result = run("files", self.path("local"), "--port", "0", "--record")
        self.assertEqual(result.returncode, 2)
        self.assertIn(b"bring their probe prompt along", result.stderr)

    def serve(self, directory, *flags):
        """Starts `lockstep files`: its URL, and what ends it and says how many bytes it sent."""
        process = start("files", directory, "--port", "0", *flags)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        line = ""
        while " at http" not in line:
            line = process.stderr.readline().decode()
            self.assertNotEqual(line, "")

        def end():
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=20)[1].decode()
            number, unit = re.search(r"requests, ([0-9.]+) (\w+) sent", said).groups()
            return float(number) * {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}[unit]

        return line.rpartition(" at ")[2].strip(), end

    def test_the_directory_alone_answers(self):
        for model in ("tiny-k", "tiny-k-Q4_K_M.gguf"):
            with self.subTest(model=model):
                out = self.path(model)
                self.shard(model, out, "--ranks", 2)
                flags = ("--ranks", 2, "--max-tokens", 8, "--temperature", 0, "--raw", "hello there")
                there = run("run", "--model", os.path.join(MODELS, model), *flags)
                here = run("run", "--model", out, *flags)
                self.assertEqual(here.returncode, there.returncode, here.stderr.decode())
                self.assertEqual(here.stdout, there.stdout)

    def test_after_kills_the_files_are_the_same(self):
        flags = ("--model", os.path.join(MODELS, "tiny-k"), "--ranks", 2, "--quantize", "q4_k,head=q6_k",
                 "--threads", 1)
        whole, killed = self.path("whole"), self.path("killed")
        began = time.monotonic()
        self.assertEqual(run("shard", *flags, "--out", whole).returncode, 0)
        seconds = time.monotonic() - began
        for part in (0.3, 0.5, 0.7, 0.9):
            process = start("shard", *map(str, flags), "--out", killed)
            time.sleep(seconds * part)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        result = run("shard", *flags, "--out", killed)
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        self.assertEqual(self.contents(killed, 2), self.contents(whole, 2))
        self.assertEqual([name for name in os.listdir(killed) if name.endswith((".part", ".journal"))], [])

    def test_other_ranks_and_shares_are_refused_with_a_remedy(self):
        out = self.path("out")
        self.shard("tiny-a", out, "--ranks", 2, "--shares", "3,2")
        tokens = self.write("tokens.json", json.dumps(TOKENS))
        command = ("logits", "--model", out, "--tokens", tokens, "--out", self.path("x"))
        self.assert_fails(run(*command), 3, "rank-0-of-1.lockstep", "files for 2 ranks", "lockstep shard --ranks 1")
        self.assert_fails(run(*command, "--ranks", 2), 3, "--shares 3,2")
        self.assert_fails(run("shard", "--model", out, "--out", self.path("y"), "--ranks", 2), 2, "single ranks")
        os.remove(os.path.join(out, "rank-1-of-2.lockstep"))
        self.assert_fails(run(*command, "--ranks", 2, "--shares", "3,2"), 3, "rank-1-of-2.lockstep: missing")

    def fails_after_text(self, result, *parts):
        self.assertEqual(result.returncode, 3, result.stderr.decode())
        last = result.stderr.decode().splitlines()[-1]
        for part in parts:
            self.assertIn(part, last)

    def test_drafts_have_the_same_bits(self):
        for model in ("tiny-b", "tiny-b-Q8_0.gguf"):
            with self.subTest(model=model):
                out = self.path(model)
                self.shard(model, out, "--ranks", 3, "--shares", "3,1,2")
                flags = ("--ranks", 3, "--shares", "3,1,2", "--draft")
                self.assertEqual(self.logits(out, *flags), self.logits(os.path.join(MODELS, model), *flags))

    def test_a_quantized_draft_layer_drafts_nearly_the_same_and_changes_no_answer(self):
        rows = {}
        for quantize in ("", "draft=q8_0"):
            out = self.path("out-" + quantize)
            # Of one rank: blocks move the cuts of feed-forwards between more.
            self.shard("tiny-b", out, "--ranks", 1, "--quantize", quantize)
            self.logits(out, "--draft")
            rows[quantize] = Tensors(self.path("out.safetensors"))
        plain, quantized = rows.values()
        for name in plain.names():
            if name.startswith("draft"):
                error = relative_error(quantized.values(name), plain.values(name))
                self.assertTrue(0 < error < 0.05, f"{name}: {error}")
            else:
                self.assertEqual(quantized.raw(name), plain.raw(name), name)

    def test_verify_says_what_it_checked(self):
        out = self.path("out")
        self.shard("tiny-k", out, "--ranks", 2, "--quantize", "q4_k")
        for flags in ((), ("--exact",), ("--exact", "--kv-cache-dtype", "q8")):
            result = run("verify", "--model", out, "--ranks", 2, *flags)
            self.assertEqual(result.returncode, 0, result.stderr.decode())
            lines = result.stdout.decode().splitlines()
            self.assertIn("every checksum right", lines[0])
            self.assertIn("rank 1:", lines[1])
            self.assertIn("probe prompt: the recorded logits", lines[3])
        # A narrow wire would move the logits by a hundredth.
        result = run("verify", "--model", out, "--ranks", 2, "--exact", "--json", "--wire", "int8")
        result = json.loads(result.stdout)
        self.assertEqual(result["probe"]["result"], "right")
        self.assertLess(max(result["probe"]["distances"]), 1e-5)
        self.assert_fails(run("verify", "--model", os.path.join(MODELS, "tiny-k")), 2, "no files of ranks")

    def test_other_logits_than_the_recorded_ones_never_start(self):
        out = self.path("out")
        self.shard("tiny-a", out, "--ranks", 2)
        path = os.path.join(out, "probe.json")
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
        for row in record["rows"]:
            row["projections"] = [value + row["deviation"] for value in row["projections"]]
        with open(path, "w", encoding="utf-8") as file:
            json.dump(record, file)
        command = ("run", "--model", out, "--ranks", 2, "--raw", "--max-tokens", 2, "hello")
        self.assert_fails(run(*command), 3, "probe prompt differ", path)
        for flags in ((), ("--exact",)):
            self.fails_after_text(run("verify", "--model", out, "--ranks", 2, *flags), "probe prompt differ", path)
        result = run("verify", "--model", out, "--ranks", 2, "--exact", "--record")
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        self.assertEqual(run(*command).returncode, 0)
        record["settings"] = "0" * 16
        with open(path, "w", encoding="utf-8") as file:
            json.dump(record, file)
        result = run(*command)
        self.assert_fails(result, 3, path, "other files")
        self.assertEqual(run("verify", *printed_command(result)).returncode, 0)
        self.assertEqual(run(*command).returncode, 0)
        with open(path, "w", encoding="utf-8") as file:
            file.write("{}")
        self.assert_fails(run(*command), 3, path, "lockstep_probe")
        os.remove(path)
        result = run(*command)
        self.assertEqual(result.returncode, 0)
        self.assertIn("probe.json: missing", result.stderr.decode())
        result = run("verify", "--model", out, "--ranks", 2, "--record")
        self.assertEqual(result.returncode, 2)
        self.assertIn("--exact", result.stderr.decode())

    def test_without_a_record_nothing_is_right_until_the_printed_command_ran(self):
        for cut in (("--ranks", 2), ("--shares", "3,2,1"), ("--ranks", 1)):
            with self.subTest(cut=cut):
                out = self.path("-".join(map(str, cut)))
                # One rank alone records nothing.
                for rank in range({"--shares": 3}.get(cut[0], cut[1])):
                    made = self.shard("tiny-a", out, *cut, "--rank", rank)
                self.assertFalse(os.path.exists(os.path.join(out, "probe.json")))
                ranks = () if cut[0] == "--ranks" else ("--ranks", 3)
                result = run("verify", "--model", out, *cut, *ranks)
                self.fails_after_text(result, "probe.json: missing", "lockstep shard")
                inspected = json.loads(run("inspect", "--model", out, "--json").stdout)["probe"]
                command = printed_command(result)
                self.assertEqual(command, printed_command(made))
                self.assertEqual(command, shlex.split(inspected.rpartition("lockstep verify ")[2]))
                recorded = run("verify", *command)
                self.assertEqual(recorded.returncode, 0, recorded.stderr.decode())
                self.assertEqual(run("verify", "--model", out, *cut, *ranks).returncode, 0)

    def test_a_model_that_8_bit_activations_do_not_compute_is_named(self):
        def edit(path):
            # What the head is given has one large value in each block, which the head then ignores.
            with open(path, "rb") as file:
                data = bytearray(file.read())
            size = struct.unpack("<Q", data[:8])[0]
            header = json.loads(data[8:8 + size])
            for name, bits in (("model.norm.weight", b"\x7a\x44"), ("lm_head.weight", b"\0\0")):
                begin, end = header[name]["data_offsets"]
                for at in range(8 + size + begin, 8 + size + end, 64):
                    data[at:at + 2] = bits
            with open(path, "wb") as file:
                file.write(data)

        model, out = self.copy_model("tiny-k"), self.path("out")
        flags = ("--ranks", 2, "--quantize", "q8_0,head=q8_0")
        self.assertNotIn("8-bit", self.shard(model, self.path("sound"), *flags).stderr.decode())
        edit(os.path.join(model, "model-00002-of-00002.safetensors"))
        self.assertRegex(self.shard(model, out, *flags).stderr.decode(), r"8-bit activations do not .* by [0-9.]+ of")
        command = ("run", "--model", out, "--ranks", 2, "--raw", "--max-tokens", 2, "hello")
        self.assert_fails(run(*command), 3, "probe prompt differ")
        self.assertEqual(run(*command, "--exact").returncode, 0)

    def test_what_a_cluster_recorded_stays_until_the_source_is_asked_for(self):
        out = self.path("out")

        def is_from_source():
            with open(os.path.join(out, "probe.json"), encoding="utf-8") as file:
                return json.load(file)["from_source"]

        self.shard("tiny-a", out, "--ranks", 2)
        self.assertTrue(is_from_source())
        os.remove(os.path.join(out, "probe.json"))
        result = run("verify", "--model", out, "--ranks", 2, "--exact", "--record")
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        self.assertFalse(is_from_source())
        self.shard("tiny-a", out, "--ranks", 2)
        self.assertFalse(is_from_source())
        self.shard("tiny-a", out, "--ranks", 2, "--record")
        self.assertTrue(is_from_source())

    def test_inspect_names_what_is_missing_or_foreign(self):
        out, other = self.path("out"), self.path("other")
        self.shard("tiny-b", out, "--ranks", 2, "--shares", "3,2")
        result = run("inspect", "--model", out)
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        text = result.stdout.decode()
        for part in ("files for 2 ranks", "shares 3,2", "rank-1-of-2.lockstep", "mtp layer", "probe prompt: recorded"):
            self.assertIn(part, text)
        self.shard("tiny-b", other, "--ranks", 2)
        os.replace(os.path.join(other, "rank-1-of-2.lockstep"), os.path.join(out, "rank-1-of-2.lockstep"))
        result = run("inspect", "--model", out)
        self.fails_after_text(result, "rank-1-of-2.lockstep", "another set")
        self.assertNotIn("missing", result.stdout.decode())
        self.assertNotIn("more fault", result.stderr.decode())
        os.remove(os.path.join(out, "rank-1-of-2.lockstep"))
        self.fails_after_text(run("inspect", "--model", out), "rank-1-of-2.lockstep: missing")

    def test_inspect_says_what_a_token_reads_on_every_rank(self):
        model, out = os.path.join(MODELS, "tiny-b"), self.path("out")
        whole = json.loads(run("inspect", "--model", model, "--json").stdout)
        self.shard("tiny-b", out, "--ranks", 2, "--shares", "3,1")
        self.assertIn("read per decoded token", run("inspect", "--model", out).stdout.decode())
        files = json.loads(run("inspect", "--model", out, "--json").stdout)["files"]
        read = [file["bytes_per_token"] for file in files]
        self.assertGreater(read[0], read[1])
        # Routers, norms and straddled heads are on both.
        self.assertLess(whole["bytes_per_token"], sum(read))
        self.assertLess(sum(read), 1.2 * whole["bytes_per_token"])
        self.assertEqual(list(files[0]["components"]), list(whole["components"]))

    def test_a_layer_that_does_not_fit_is_sharded_without_a_probe(self):
        def shard_within(mib):
            out = self.path(f"within-{mib}")
            command = [BINARY, "shard", "--model", os.path.join(MODELS, "tiny-a"), "--out", out, "--ranks", "2",
                       "--threads", "1"]
            limit = mib << 20
            result = subprocess.run(command, capture_output=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
                                    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
            return result, os.path.exists(os.path.join(out, "probe.json"))

        result, recorded = shard_within(4096)
        if result.returncode != 0:
            self.skipTest("the program does not run with a limited address space (address sanitizer)")
        self.assertTrue(recorded)
        # Less and less, until the model's plan does not fit beside the program.
        for mib in range(200, 40, -4):
            result, recorded = shard_within(mib)
            if not recorded:
                break
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        self.assertRegex(result.stderr.decode(), "it needs .* with .* of the model in memory, and there are ")
        self.assertIn("verify", result.stderr.decode())

    def test_damage_is_named(self):
        out = self.path("out")
        self.shard("tiny-a", out, "--ranks", 2)
        tokens = self.write("tokens.json", json.dumps(TOKENS))
        command = ("logits", "--model", out, "--tokens", tokens, "--out", self.path("x"), "--ranks", 2)
        path = os.path.join(out, "rank-1-of-2.lockstep")
        good = self.contents(out, 2)[1]
        header = json.loads(good[32:32 + int.from_bytes(good[16:24], "little")])
        tensor = next(entry for entry in header["tensors"] if entry["name"].endswith("0.self_attn.o_proj.weight"))
        bad = bytearray(good)
        bad[tensor["offset"] + 5] ^= 1
        with open(path, "wb") as file:
            file.write(bad)
        result = run(*command)
        self.assert_fails(result, 3, path, tensor["name"], "checksum", "rank 1")
        last = result.stderr.decode().splitlines()[-1]
        self.assertEqual(last.count("rank 1 ("), 1, last)
        with open(path, "wb") as file:
            file.write(good[:-5000])
        self.assert_fails(run(*command), 3, path, "it was cut")

    def test_files_of_two_shardings_do_not_mix(self):
        one, other = self.path("one"), self.path("other")
        self.shard("tiny-a", one, "--ranks", 2)
        self.shard("tiny-a", other, "--ranks", 2, "--quantize", "q8_0")
        name = "rank-1-of-2.lockstep"
        os.replace(os.path.join(other, name), os.path.join(one, name))
        tokens = self.write("tokens.json", json.dumps(TOKENS))
        self.assert_fails(run("logits", "--model", one, "--tokens", tokens, "--out", self.path("x"), "--ranks", 2), 2,
                          "model digest")

    def test_a_full_disk_is_reported(self):
        out = self.path("out")
        command = [BINARY, "shard", "--model", os.path.join(MODELS, "tiny-a"), "--out", out, "--ranks", "2"]
        result = subprocess.run(command, capture_output=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
                                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)))
        self.assert_fails(result, 2, out, "make room")
        self.assertEqual(run(*command[1:]).returncode, 0)

    def test_bad_flags_are_named(self):
        model = os.path.join(MODELS, "tiny-a")
        out = ("--out", self.path("out"))
        self.assert_fails(run("shard", "--model", model, *out), 2, "--ranks")
        self.assert_fails(run("shard", "--model", model, "--ranks", 2), 2, "--out")
        self.assert_fails(run("shard", *out, "--ranks", 2), 2, "--model")
        self.assert_fails(run("shard", "--model", model, *out, "--ranks", 2, "--shares", "1,1,1"), 2, "--shares")
        self.assert_fails(run("shard", "--model", model, *out, "--ranks", 2, "--quantize", "q9"), 2, "--quantize", "q4_k")
        self.assert_fails(run("shard", "--model", model, "--out", os.path.join(source("README.md"), "x"), "--ranks", 2),
                          2, "README.md")


if __name__ == "__main__":
    unittest.main()
