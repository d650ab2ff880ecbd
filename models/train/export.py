#!/usr/bin/env python3
"""Writes a training checkpoint as a Hugging Face glm4_moe checkpoint, and reads one back.

Layout and names are those of the published GLM-4.7 checkpoints: BF16 weights with a float32
`e_score_correction_bias`, the main model in `model-0000i-of-0000n.safetensors`, the MTP layer
(with its copies of embedding and head) in `mtp.safetensors`, and one index over all of them.

    python export.py --checkpoint tiny.pt --tokenizer tokenizer.json \\
        --template chat_template.jinja --out ../tiny
"""

import argparse
import json
import os
import shutil

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from model import CONFIG, Model
from tokenizer import SPECIAL, STOP_TOKENS

FIRST_SHARD_LAYERS = 2


# ---------------------------------------------------------------- names


def layer_names(ours, theirs, config, dense):
    """-> (our name, index into it, their name) for one decoder layer."""
    rows = [(f"{ours}norm1.weight", (), f"{theirs}input_layernorm.weight"),
            (f"{ours}norm2.weight", (), f"{theirs}post_attention_layernorm.weight")]
    for x in "qkv":
        for kind in ("weight", "bias"):
            rows.append((f"{ours}attention.{x}.{kind}", (), f"{theirs}self_attn.{x}_proj.{kind}"))
    rows.append((f"{ours}attention.o.weight", (), f"{theirs}self_attn.o_proj.weight"))
    for x in "qk":
        rows.append((f"{ours}attention.{x}_norm.weight", (), f"{theirs}self_attn.{x}_norm.weight"))

    def mlp(ours, theirs, index=()):
        rows.append((ours + "gate_up", index + (0,), theirs + "gate_proj.weight"))
        rows.append((ours + "gate_up", index + (1,), theirs + "up_proj.weight"))
        rows.append((ours + "down", index, theirs + "down_proj.weight"))

    if dense:
        mlp(f"{ours}mlp.", f"{theirs}mlp.")
        return rows
    rows.append((f"{ours}mlp.gate", (), f"{theirs}mlp.gate.weight"))
    rows.append((f"{ours}mlp.bias", (), f"{theirs}mlp.gate.e_score_correction_bias"))
    for expert in range(config["n_routed_experts"]):
        mlp(f"{ours}mlp.", f"{theirs}mlp.experts.{expert}.", (expert,))
    mlp(f"{ours}mlp.shared.", f"{theirs}mlp.shared_experts.")
    return rows


def main_names(config):
    """The main model: (our name, index, their name) in file order."""
    rows = [("embed.weight", (), "model.embed_tokens.weight")]
    for i in range(config["num_hidden_layers"]):
        dense = i < config["first_k_dense_replace"]
        rows += layer_names(f"layers.{i}.", f"model.layers.{i}.", config, dense)
    return rows + [("norm.weight", (), "model.norm.weight"), ("head", (), "lm_head.weight")]


def mtp_names(config):
    """The MTP layer: it follows the last layer and repeats embedding and head."""
    prefix = f"model.layers.{config['num_hidden_layers']}."
    return [
        ("embed.weight", (), prefix + "embed_tokens.weight"),
        ("mtp_embed_norm.weight", (), prefix + "enorm.weight"),
        ("mtp_hidden_norm.weight", (), prefix + "hnorm.weight"),
        ("mtp_join.weight", (), prefix + "eh_proj.weight"),
        *layer_names("mtp_layer.", prefix, config, dense=False),
        ("mtp_norm.weight", (), prefix + "shared_head.norm.weight"),
        ("head", (), prefix + "shared_head.head.weight"),
    ]


# ---------------------------------------------------------------- writing


def convert(state, rows):
    """-> {their name: tensor in the type it is stored in}."""
    tensors = {}
    for ours, index, theirs in rows:
        tensor = state[ours][index] if index else state[ours]
        kind = torch.float32 if theirs.endswith("e_score_correction_bias") else torch.bfloat16
        tensors[theirs] = tensor.to(kind).clone().contiguous()
    return tensors


def write_weights(state, config, out):
    """Two shards, mtp.safetensors and the index."""
    main = convert(state, main_names(config))
    in_first = ["model.embed_tokens."]
    in_first += [f"model.layers.{i}." for i in range(FIRST_SHARD_LAYERS)]
    first = {k: v for k, v in main.items() if k.startswith(tuple(in_first))}
    files = {
        "model-00001-of-00002.safetensors": first,
        "model-00002-of-00002.safetensors": {k: v for k, v in main.items() if k not in first},
        "mtp.safetensors": convert(state, mtp_names(config)),
    }
    weight_map, total = {}, 0
    for file, tensors in files.items():
        save_file(tensors, os.path.join(out, file), metadata={"format": "pt"})
        weight_map |= {name: file for name in tensors}
        total += sum(t.numel() * t.element_size() for t in tensors.values())
    write_json(os.path.join(out, "model.safetensors.index.json"),
               {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
    return total


def write_json(path, value):
    with open(path, "w") as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_configs(config, tokenizer_file, out):
    """config.json, generation_config.json and tokenizer_config.json."""
    tokenizer = Tokenizer.from_file(tokenizer_file)
    stop = [tokenizer.token_to_id(token) for token in STOP_TOKENS]
    write_json(os.path.join(out, "config.json"), {
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "attention_bias": True,
        "attention_dropout": 0.0,
        "dtype": "bfloat16",
        "eos_token_id": stop,
        "first_k_dense_replace": config["first_k_dense_replace"],
        "head_dim": config["head_dim"],
        "hidden_act": "silu",
        "hidden_size": config["hidden_size"],
        "initializer_range": 0.02,
        "intermediate_size": config["intermediate_size"],
        "max_position_embeddings": config["max_position_embeddings"],
        "moe_intermediate_size": config["moe_intermediate_size"],
        "n_group": 1,
        "n_routed_experts": config["n_routed_experts"],
        "n_shared_experts": config["n_shared_experts"],
        "norm_topk_prob": True,
        "num_attention_heads": config["num_attention_heads"],
        "num_experts_per_tok": config["num_experts_per_tok"],
        "num_hidden_layers": config["num_hidden_layers"],
        "num_key_value_heads": config["num_key_value_heads"],
        "num_nextn_predict_layers": 1,
        "pad_token_id": stop[0],
        "partial_rotary_factor": config["partial_rotary_factor"],
        "rms_norm_eps": config["rms_norm_eps"],
        "rope_scaling": None,
        "rope_theta": int(config["rope_theta"]),
        "routed_scaling_factor": config["routed_scaling_factor"],
        "tie_word_embeddings": False,
        "topk_group": 1,
        "use_cache": True,
        "use_qk_norm": True,
        "vocab_size": config["vocab_size"],
    })
    write_json(os.path.join(out, "generation_config.json"), {
        "do_sample": True,
        "eos_token_id": stop,
        "pad_token_id": stop[0],
        "temperature": 0.7,
        "top_p": 0.95,
    })
    with open(tokenizer_file) as file:
        added = json.load(file)["added_tokens"]
    write_json(os.path.join(out, "tokenizer_config.json"), {
        "added_tokens_decoder": {str(t["id"]): {k: t[k] for k in (
            "content", "lstrip", "normalized", "rstrip", "single_word", "special")}
            for t in added},
        "additional_special_tokens": SPECIAL,
        "clean_up_tokenization_spaces": False,
        "do_lower_case": False,
        "eos_token": "<|endoftext|>",
        "extra_special_tokens": {},
        "model_max_length": config["max_position_embeddings"],
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "remove_space": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    })


# ---------------------------------------------------------------- reading back


def load_exported(folder):
    """-> the training module in float32, with the weights of an exported checkpoint."""
    model = Model(CONFIG)
    state = model.state_dict()
    with open(os.path.join(folder, "model.safetensors.index.json")) as file:
        weight_map = json.load(file)["weight_map"]
    files = {name: load_file(os.path.join(folder, name)) for name in set(weight_map.values())}
    for ours, index, theirs in main_names(CONFIG) + mtp_names(CONFIG):
        target = state[ours][index] if index else state[ours]
        target.copy_(files[weight_map[theirs]][theirs].float())
    return model.eval()


def main():
    parser = argparse.ArgumentParser(description="Export to the Hugging Face layout.")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--template", required=True, help="GLM-4.7's chat_template.jinja")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    saved = torch.load(args.checkpoint, map_location="cpu", weights_only=False)
    os.makedirs(args.out, exist_ok=True)
    total = write_weights(saved["model"], saved["config"], args.out)
    write_configs(saved["config"], args.tokenizer, args.out)
    copies = {"tokenizer.json": args.tokenizer, "chat_template.jinja": args.template}
    for name, source in copies.items():
        target = os.path.join(args.out, name)
        if os.path.abspath(source) != os.path.abspath(target):
            shutil.copyfile(source, target)
    print(f"{args.out}: {total / 1e6:.2f} MB of weights, {saved['progress']}")


if __name__ == "__main__":
    main()
