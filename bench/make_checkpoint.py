#!/usr/bin/env python3
"""Writes a synthetic glm4_moe checkpoint with GLM-4.7's true layer shapes and few layers, for measuring speed.

    bench/make_checkpoint.py OUT [--dense 1] [--moe 1] [--experts 160] [--vocab 2048] [--seed 1]

Random BF16 weights of a sane scale in Hugging Face layout: config.json, sharded safetensors with their index, and the
small model's tokenizer, so that `lockstep run --raw` works. One MoE layer is 7.7 GB. Needs only Python; memory stays
small. The weights of a tensor are cut from one random pool at a random place: no two rows are alike, which is all that
a measurement of speed needs.
"""

import argparse
import json
import pathlib
import random
import shutil
import struct
import sys

HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 5120, 96, 8, 128
DENSE, EXPERT, TOP_K = 12288, 1536, 8
POOL_BYTES = 64 << 20
PIECE_BYTES = 16 << 20


def make_pool(draw):
    """BF16 values: a random sign, an exponent that gives 2^-7 .. 2^-5 (about 1 / sqrt(hidden)), a random mantissa."""
    pool = bytearray(draw.randbytes(POOL_BYTES))
    pool[1::2] = bytes(pool[1::2]).translate(bytes(0x3C | (byte & 0x80) for byte in range(256)))
    return bytes(pool)


def ones(count):
    return b"\x80\x3f" * count


class Writer:
    """One safetensors file after another, each filled up to a size."""

    def __init__(self, folder, shard_bytes, draw):
        self.folder, self.shard_bytes, self.draw = folder, shard_bytes, draw
        self.pool = make_pool(draw)
        self.shards, self.current, self.current_bytes = [], [], 0

    def add(self, name, shape, kind="random"):
        size = (4 if kind == "zeros_f32" else 2) * self.count(shape)
        if self.current and self.current_bytes + size > self.shard_bytes:
            self.end_shard()
        self.current.append((name, shape, kind, size))
        self.current_bytes += size

    @staticmethod
    def count(shape):
        count = 1
        for length in shape:
            count *= length
        return count

    def end_shard(self):
        if self.current:
            self.shards.append(self.current)
        self.current, self.current_bytes = [], 0

    def data(self, shape, kind, size):
        if kind == "ones":
            yield ones(self.count(shape))
        elif kind == "zeros_f32":
            yield bytes(size)
        else:
            while size > 0:
                piece = min(size, PIECE_BYTES)
                start = self.draw.randrange(0, POOL_BYTES - piece + 1, 2)
                yield self.pool[start : start + piece]
                size -= piece

    def write(self):
        self.end_shard()
        weight_map, total = {}, 0
        for number, shard in enumerate(self.shards, 1):
            file = f"model-{number:05d}-of-{len(self.shards):05d}.safetensors"
            header, offset = {}, 0
            for name, shape, kind, size in shard:
                dtype = "F32" if kind == "zeros_f32" else "BF16"
                header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
                weight_map[name] = file
                offset += size
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)
            with open(self.folder / file, "wb") as out:
                out.write(struct.pack("<Q", len(text)) + text)
                for name, shape, kind, size in shard:
                    for piece in self.data(shape, kind, size):
                        out.write(piece)
            total += offset
            print(f"{file}: {offset / 1e9:.2f} GB", file=sys.stderr)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def add_layer(writer, layer, arguments):
    prefix = f"model.layers.{layer}."
    writer.add(prefix + "input_layernorm.weight", [HIDDEN], "ones")
    writer.add(prefix + "post_attention_layernorm.weight", [HIDDEN], "ones")
    for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
        writer.add(prefix + f"self_attn.{name}_proj.weight", [heads * HEAD_DIM, HIDDEN])
        writer.add(prefix + f"self_attn.{name}_proj.bias", [heads * HEAD_DIM])
    writer.add(prefix + "self_attn.o_proj.weight", [HIDDEN, HEADS * HEAD_DIM])
    for name in ("q_norm", "k_norm"):
        writer.add(prefix + f"self_attn.{name}.weight", [HEAD_DIM], "ones")
    if layer < arguments.dense:
        feed_forward = [("mlp.", DENSE)]
    else:
        writer.add(prefix + "mlp.gate.weight", [arguments.experts, HIDDEN])
        writer.add(prefix + "mlp.gate.e_score_correction_bias", [arguments.experts], "zeros_f32")
        feed_forward = [(f"mlp.experts.{expert}.", EXPERT) for expert in range(arguments.experts)]
        feed_forward.append(("mlp.shared_experts.", EXPERT))
    for name, columns in feed_forward:
        writer.add(prefix + name + "gate_proj.weight", [columns, HIDDEN])
        writer.add(prefix + name + "up_proj.weight", [columns, HIDDEN])
        writer.add(prefix + name + "down_proj.weight", [HIDDEN, columns])


def make_config(arguments, tiny):
    return {
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "dtype": "bfloat16",
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": tiny["eos_token_id"],
        "pad_token_id": tiny["pad_token_id"],
        "first_k_dense_replace": arguments.dense,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": DENSE,
        "max_position_embeddings": 202752,
        "moe_intermediate_size": EXPERT,
        "n_group": 1,
        "n_routed_experts": arguments.experts,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": HEADS,
        "num_experts_per_tok": min(TOP_K, arguments.experts),
        "num_hidden_layers": arguments.dense + arguments.moe,
        "num_key_value_heads": KV_HEADS,
        "num_nextn_predict_layers": 0,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "routed_scaling_factor": 2.5,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "use_cache": True,
        "use_qk_norm": True,
        "vocab_size": arguments.vocab,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--dense", type=int, default=1, help="dense layers (GLM-4.7: 3)")
    parser.add_argument("--moe", type=int, default=1, help="MoE layers (GLM-4.7: 89)")
    parser.add_argument("--experts", type=int, default=160)
    parser.add_argument("--vocab", type=int, default=2048, help="rows of embedding and head (GLM-4.7: 151552)")
    parser.add_argument("--shard-gb", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    tiny = pathlib.Path(__file__).resolve().parents[1] / "models/tiny"
    tiny_config = json.loads((tiny / "config.json").read_text())
    if arguments.vocab < tiny_config["vocab_size"]:
        parser.error(f"--vocab must be at least {tiny_config['vocab_size']}, the small tokenizer's ids")
    if arguments.dense < 0 or arguments.moe < 0 or arguments.dense + arguments.moe == 0:
        parser.error("at least one layer is needed")
    arguments.out.mkdir(parents=True, exist_ok=True)

    writer = Writer(arguments.out, int(arguments.shard_gb * 1e9), random.Random(arguments.seed))
    writer.add("model.embed_tokens.weight", [arguments.vocab, HIDDEN])
    for layer in range(arguments.dense + arguments.moe):
        add_layer(writer, layer, arguments)
    writer.add("model.norm.weight", [HIDDEN], "ones")
    writer.add("lm_head.weight", [arguments.vocab, HIDDEN])
    writer.write()
    (arguments.out / "config.json").write_text(json.dumps(make_config(arguments, tiny_config), indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        if (tiny / name).exists():
            shutil.copy(tiny / name, arguments.out / name)


if __name__ == "__main__":
    main()
