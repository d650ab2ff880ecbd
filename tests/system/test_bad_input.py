"""What users get wrong, and the sentence they get for it."""

import json
import os
import socket
import unittest

from support import MODELS, TINY, TestCase, free_port, mpirun, run, source

A = os.path.join(MODELS, "tiny-a")


class CommandLine(TestCase):
    def test_unknown_things_are_refused(self):
        self.assert_fails(run("rum", "--model", A), 2, "rum", "run")
        self.assert_fails(run("run", "--modle", A, "x"), 2, "modle")
        self.assert_fails(run("run", "--model", A, "--collective", "smoke", "x"), 2, "smoke", "tcp, shm, rdma, mpi")
        self.assert_fails(run("run", "--model", A, "--ranks", "0", "x"), 2, "--ranks")
        self.assert_fails(run("run", "--model", A, "--ranks", "2", "--shares", "1,2,3", "x"), 2, "3 shares", "2 ranks")
        self.assert_fails(run("run", "x"), 2, "--model")
        self.assert_fails(run("run", "--model", A), 2, "prompt")
        self.assert_fails(run("run", "--model", A, "--config", "/nowhere.yaml", "x"), 2, "/nowhere.yaml")

    def test_mpirun_and_ranks_must_agree(self):
        result = run("run", "--model", A, "--ranks", "3", "x", prefix=mpirun(2))
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("3", result.stderr.decode())

    def test_under_mpirun_only_rank_0_answers(self):
        alone = run("version")
        together = run("version", prefix=mpirun(2))
        self.assertEqual(together.returncode, 0, together.stderr.decode())
        self.assertEqual(together.stdout, alone.stdout)

    def test_a_result_that_cannot_be_written_is_told_before_the_model_is_read(self):
        tokens = self.write("tokens.json", "[[1, 2]]")
        flags = ("logits", "--model", "/no/such/model", "--ranks", "2")
        self.assert_fails(run(*flags, "--tokens", tokens, "--out", "/nowhere/x.safetensors"), 2, "--out", "/nowhere")
        self.assert_fails(run(*flags, "--tokens", tokens, "--out", self.directory), 2, "--out", "directory")
        self.assert_fails(run(*flags, "--tokens", "/nowhere.json", "--out", self.path("x")), 2, "--tokens", "/nowhere")

    def test_version_says_what_was_built(self):
        result = run("version")
        self.assertEqual(result.returncode, 0)
        self.assertRegex(result.stdout.decode(), r"0\.1\.0\+")

    def test_yaml_mistakes_name_file_and_line(self):
        for text, needles in (("modell: x\n", ("modell", "model")), ("ranks: two\n", ("ranks", "two")),
                              ("collective: smoke\n", ("smoke", "tcp")), ("- a\n", ("key: value",))):
            with self.subTest(text=text):
                config = self.write("c.yaml", "# a comment\n" + text)
                self.assert_fails(run("run", "--config", config, "x"), 2, "c.yaml:2", *needles)


class Checkpoints(TestCase):
    def edit(self, key, value):
        path = os.path.join(self.copy_model(), "config.json")
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        config[key] = value
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config, file)

    def refused(self, *needles, ranks=2):
        for count in (1, ranks):
            self.assert_fails(run("run", "--model", self.path("tiny-a"), "--ranks", count, "--raw", "x"), 3, *needles)

    def test_no_directory(self):
        self.assert_fails(run("run", "--model", "/nowhere", "x"), 3, "/nowhere")

    def test_unknown_architecture(self):
        self.edit("model_type", "llama")
        self.refused("llama", "glm4_moe")

    def test_config_against_weights(self):
        self.edit("hidden_size", 128)
        self.refused("config.json means")
        inspected = run("inspect", "--model", self.path("tiny-a"))
        self.assertEqual(inspected.returncode, 3, inspected.stderr.decode())
        self.assertIn("config.json means", inspected.stderr.decode())
        self.assertIn("all tensors", inspected.stdout.decode())

    def test_vocabulary_smaller_than_the_tokenizer(self):
        self.edit("vocab_size", 900)
        self.refused("tiny-a")

    def test_missing_shard(self):
        self.copy_model()
        os.remove(os.path.join(self.path("tiny-a"), "model-00002-of-00002.safetensors"))
        self.refused("model-00002-of-00002.safetensors")

    def test_cut_shard(self):
        self.copy_model()
        shard = os.path.join(self.path("tiny-a"), "model-00001-of-00002.safetensors")
        os.truncate(shard, os.path.getsize(shard) - 8)
        self.refused("model-00001-of-00002.safetensors")

    def test_missing_tokenizer(self):
        self.copy_model()
        os.remove(os.path.join(self.path("tiny-a"), "tokenizer.json"))
        self.refused("tokenizer.json")

    def test_no_template_allows_raw_completion_only(self):
        self.copy_model()
        os.remove(os.path.join(self.path("tiny-a"), "chat_template.jinja"))
        result = run("run", "--model", self.path("tiny-a"), "x")
        self.assertEqual(result.returncode, 2)
        self.assertIn("--raw", result.stderr.decode())
        self.assertEqual(run("run", "--model", self.path("tiny-a"), "--raw", "--max-tokens", "2", "x").returncode, 0)


class Prompts(TestCase):
    def test_empty_prompt(self):
        self.assert_fails(run("run", "--model", A, "--raw", ""), 2, "empty")

    def test_prompt_longer_than_the_context(self):
        self.assert_fails(run("run", "--model", A, "--max-model-len", "32", "--raw", "word " * 100), 2, "32")

    def test_answers_stop_where_the_context_ends(self):
        result = run("run", "--model", A, "--max-model-len", "32", "--raw", "--ignore-eos", "--json", "a b c")
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        answer = json.loads(result.stdout)
        self.assertEqual(answer["finish_reason"], "length")
        self.assertEqual(answer["usage"]["total_tokens"], 32)


class Ports(TestCase):
    def test_a_port_in_use_is_named_with_its_flag(self):
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            holder.listen()
            port = holder.getsockname()[1]
            self.assert_fails(run("serve", "--model", A, "--port", 0, "--grpc-port", port), 2, str(port), "--grpc-port")
            self.assert_fails(run("serve", "--model", A, "--grpc-port", 0, "--port", port), 2, str(port), "--port")
            self.assert_fails(run("run", "--model", A, "--ranks", 2, "--rendezvous", f"127.0.0.1:{port}", "x"), 2,
                              str(port), "rendezvous")


class Lines(TestCase):
    def test_tokenize_and_detokenize_answer_line_by_line(self):
        lines = b'{"text": "Hello <|user|>"}\n[]\n{"text": ""}\n'
        result = run("tokenize", "--model", TINY, stdin=lines)
        self.assertEqual(result.returncode, 2)
        out = [json.loads(line) for line in result.stdout.splitlines()]
        self.assertEqual(len(out), 3)
        self.assertIn("error", out[1])
        self.assertEqual(out[2], {"ids": []})
        back = run("detokenize", "--model", TINY, stdin=json.dumps({"ids": out[0]["ids"]}).encode() + b"\n")
        self.assertEqual(back.returncode, 0)
        self.assertEqual(json.loads(back.stdout), {"text": "Hello <|user|>"})

    def test_render_answers_line_by_line(self):
        line = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "enable_thinking": False}).encode() + b"\n"
        result = run("render", "--model", TINY, stdin=line)
        self.assertEqual(json.loads(result.stdout), {"text": "[gMASK]<sop><|user|>Hi<|assistant|></think>"})


class Configs(TestCase):
    def test_local_configs_start_as_they_are(self):
        for name, ranks in (("local-2.yaml", 2), ("local-4.yaml", 4)):
            with self.subTest(config=name):
                result = run("run", "--config", source("configs", name), "--model", TINY, "--json", "--temperature", "0",
                             "--max-tokens", "4", "Hello!")
                self.assertEqual(result.returncode, 0, result.stderr.decode())
                digests = json.loads(result.stdout)["digests"]
                self.assertEqual(len(digests), ranks)
                self.assertEqual(len(set(digests)), 1)

    def test_free_ports_exist(self):
        self.assertGreater(free_port(), 0)


if __name__ == "__main__":
    unittest.main()
