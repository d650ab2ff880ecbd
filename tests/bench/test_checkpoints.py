"""bench/make_checkpoint.py: lockstep reads every format that it writes, as what it is meant to be."""

import json
import os
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "system"))

from support import TestCase, Tensors, relative_error, run, source  # noqa: E402

sys.path.insert(0, source("bench"))

from synthetic import gguf_files, safetensors_files  # noqa: E402

# The format of the routed experts, as `lockstep inspect` calls it.
DIRECTORIES = {
    "bf16": "BF16", "f16": "F16", "f32": "F32", "fp8": "FP8", "fp8_tiles": "FP8, tiles of 128", "nvfp4": "NVFP4",
    "nvfp4_packed": "NVFP4", "mlx-mixed": "MLX 4 bits, group 64", "mlx2": "MLX 2 bits, group 64",
    "mlx3": "MLX 3 bits, group 64", "mlx4": "MLX 4 bits, group 64", "mlx5": "MLX 5 bits, group 64",
    "mlx6": "MLX 6 bits, group 64", "mlx8": "MLX 8 bits, group 64", "mlx4-g32": "MLX 4 bits, group 32",
    "mlx6-g128": "MLX 6 bits, group 128"}
MIXES = {"q4_k_m": "Q4_K", "q2_k_m": "Q2_K", "q2_k_experts": "Q2_K"}
TOKENS = [[index * 37 % 2000 for index in range(16)]]


class Checkpoints(TestCase):
    def make(self, name, *flags):
        command = [sys.executable, "-B", source("bench", "make_checkpoint.py"), self.path(name), *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        return self.path(name)

    def logits(self, model, *flags):
        tokens = self.write("tokens.json", json.dumps(TOKENS))
        out = self.path("out.safetensors")
        result = run("logits", "--model", model, "--tokens", tokens, "--out", out, "--log-level", "error", *flags)
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        return Tensors(out)

    def inspect(self, model):
        result = run("inspect", model, "--json")
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        return json.loads(result.stdout)

    def check(self, model):
        """One and two ranks compute the same, of the size that weights of a sane scale give; so do drafts."""
        one, two = self.logits(model, "--draft"), self.logits(model, "--draft", "--ranks", 2)
        for name in ("logits.0", "draft.0"):
            values = one.values(name)
            rms = (sum(value * value for value in values) / len(values)) ** 0.5
            self.assertTrue(0.8 < rms < 1.25, f"{name}: {rms}")
            self.assertLess(relative_error(two.values(name), values), 1e-5)

    def test_every_directory_format(self):
        self.assertEqual(set(DIRECTORIES), {name for name in safetensors_files.FORMATS if "-g" not in name} |
                         {"mlx4-g32", "mlx6-g128"})
        for format, experts in DIRECTORIES.items():
            with self.subTest(format=format):
                model = self.make(format, "--shape", "tiny", "--format", format, "--mtp")
                said = self.inspect(model)
                self.assertIn(experts, said["components"]["experts"]["formats"])
                self.assertEqual(said["mtp_layers"], 1)
                self.check(model)

    def test_every_gguf_format(self):
        for format in gguf_files.FORMATS:
            with self.subTest(format=format):
                model = self.make(format + ".gguf", "--shape", "tiny", "--format", format, "--mtp")
                wanted = MIXES.get(format, format.upper())
                self.assertIn(wanted, self.inspect(model)["components"]["experts"]["formats"])
                self.check(model)

    def test_mixes_have_more_bits_where_it_is_said(self):
        def types(format):
            return [gguf_files.type_of(name, 256, kind, 5, 8, format) for name, kind in (
                ("token_embd.weight", "embedding"), ("output.weight", "head"), *(
                    (f"blk.5.{part}.weight", "matrix") for part in (
                        "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_down", "ffn_up_shexp",
                        "ffn_down_shexp", "ffn_up_exps", "ffn_down_exps")))]

        self.assertEqual(types("q2_k_m"), ["q2_k", "q6_k", "q2_k", "q2_k", "q4_k", "q3_k", "q2_k", "q3_k", "q2_k",
                                           "q3_k", "q2_k", "q3_k"])
        self.assertEqual(types("q2_k_experts"), ["q5_k", "q6_k", *["q5_k"] * 8, "q2_k", "q3_k"])

    def test_latent_attention(self):
        for name, format in (("a", "fp8_tiles"), ("b", "nvfp4_packed"), ("c", "mlx4-g128"), ("d", "mlx-mixed"),
                             ("e.gguf", "q4_k_m")):
            with self.subTest(format=format):
                self.check(self.make(name, "--shape", "tiny-flash", "--format", format, "--mtp"))

    def test_mixed_mlx_has_six_bits_where_the_recipe_says(self):
        model = self.make("mixed", "--shape", "tiny", "--moe", "7", "--format", "mlx-mixed")
        with open(os.path.join(model, "config.json"), encoding="utf-8") as file:
            settings = json.load(file)["quantization"]
        self.assertEqual(settings["bits"], 4)
        self.assertEqual({name: own["bits"] for name, own in settings.items() if isinstance(own, dict)},
                         {"lm_head": 6} | {f"model.layers.{layer}.{part}": 6 for layer in (0, 3, 6, 7)
                                           for part in parts(layer)})
        self.assertIn("MLX 6 bits, group 64", self.inspect(model)["components"]["head"]["formats"])

    def test_the_draft_layer_copies_embedding_and_head(self):
        for format in ("bf16", "mlx4"):
            with self.subTest(format=format):
                model = self.make(format, "--shape", "tiny", "--format", format, "--mtp")
                tensors = Tensors(os.path.join(model, "model-00001-of-00001.safetensors"))
                for part in ("weight", "scales", "biases") if format == "mlx4" else ("weight",):
                    for copy, main in (("embed_tokens", "model.embed_tokens"), ("shared_head.head", "lm_head")):
                        self.assertEqual(tensors.raw(f"model.layers.2.{copy}.{part}"), tensors.raw(f"{main}.{part}"))
        self.assertNotIn("mtp layer", self.inspect(self.make("without", "--shape", "tiny"))["components"])

    def test_an_unknown_format_names_the_known_ones(self):
        done = subprocess.run([sys.executable, "-B", source("bench", "make_checkpoint.py"), self.path("x"), "--format",
                               "mlx7"], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 2)
        self.assertIn("--format mlx7 is none of bf16, f16, f32, fp8", done.stderr)
        self.assertFalse(os.path.exists(self.path("x")))


def parts(layer):
    """Of `mlx-mixed` in a layer with 6 bits; layer 0 is dense."""
    yield "self_attn.v_proj"
    if layer == 0:
        yield "mlp.down_proj"
    else:
        yield from ("mlp.switch_mlp.down_proj", "mlp.shared_experts.down_proj")


if __name__ == "__main__":
    unittest.main()
