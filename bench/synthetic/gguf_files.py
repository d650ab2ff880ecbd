"""Checkpoints as one GGUF file, for lockstep and llama.cpp alike: architectures glm4moe and, for latent attention,
deepseek2. Names and keys are those that llama.cpp's converter writes."""

import json
import math
import struct
import sys

from . import blocks, shapes

# Format -> general.file_type.
FORMATS = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q2_k_m": 10,
           "q2_k_experts": 16, "q3_k": 12, "q4_k": 14, "q4_k_m": 15, "q5_k": 16, "q6_k": 18, "iq4_nl": 25,
           "iq4_xs": 30, "bf16": 32, "mxfp4": 38, "nvfp4": 39}
# What a type becomes whose blocks of 256 do not divide the rows (llama-quant.cpp, tensor_type_fallback).
FALLBACK = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0", "iq4_xs": "iq4_nl"}
ALIGNMENT = 32
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9

NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_a_proj.weight": "attn_q_a.weight",
    "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
    "self_attn.q_b_proj.weight": "attn_q_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "eh_proj.weight": "nextn.eh_proj.weight",
    "enorm.weight": "nextn.enorm.weight",
    "hnorm.weight": "nextn.hnorm.weight",
    "shared_head.norm.weight": "nextn.shared_head_norm.weight",
    "embed_tokens.weight": "nextn.embed_tokens.weight",
    "shared_head.head.weight": "nextn.shared_head_head.weight",
}
for one in "qkv":
    for part in ("weight", "bias"):
        NAMES[f"self_attn.{one}_proj.{part}"] = f"attn_{one}.{part}"
for one in ("gate", "up", "down"):
    NAMES[f"mlp.{one}_proj.weight"] = f"ffn_{one}.weight"
    NAMES[f"mlp.experts.*.{one}_proj.weight"] = f"ffn_{one}_exps.weight"
    NAMES[f"mlp.shared_experts.{one}_proj.weight"] = f"ffn_{one}_shexp.weight"
TOP_NAMES = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}


def gguf_tensors(shape):
    """(name, shape, kind, layer, key), shapes with the inputs last; equal keys are equal numbers."""
    for tensor in shapes.tensors(shape):
        if tensor.name in TOP_NAMES:
            name = TOP_NAMES[tensor.name]
            yield name, tensor.shape, tensor.kind, -1, name
            continue
        layer, suffix = tensor.name.removeprefix("model.layers.").split(".", 1)
        block = f"blk.{layer}."
        if tensor.kind == "latent":
            for name, sizes in (("attn_k_b.weight", (shape.heads, shape.kv_lora, shape.nope)),
                                ("attn_v_b.weight", (shape.heads, shape.value, shape.kv_lora))):
                yield block + name, sizes, "matrix", int(layer), block + name
        elif suffix == "post_attention_layernorm.weight":
            name = block + ("ffn_norm.weight" if shape.is_latent else "post_attention_norm.weight")
            yield name, tensor.shape, "norm", int(layer), name
        else:
            name = block + NAMES[suffix]
            yield name, tensor.shape, tensor.kind, int(layer), TOP_NAMES.get(tensor.copy_of, name)


def uses_more_bits(layer, layers):
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def matrix_type(name, kind, layer, layers, format):
    """The block format of a matrix, before rows too short for it. Three formats are mixes, all others one type.

    q4_k_m and q2_k_m (llama.cpp's Q2_K) are what llama-quant.cpp makes of GLM-4.7; a model of eight experts, or of
    fewer than four query heads per KV head, it mixes otherwise. q2_k_experts is what people make of large models: its
    Q5_K_S with other types for the routed experts (llama-quantize --tensor-type)."""
    value, output, down = (part in name for part in (".attn_v.weight", ".attn_output.weight", ".ffn_down"))
    if format in ("q4_k_m", "q2_k_m", "q2_k_experts") and kind == "head":
        return "q6_k"
    if format == "q4_k_m":
        return "q6_k" if (value or down) and uses_more_bits(layer, layers) else "q4_k"
    if format == "q2_k_m":
        return "q4_k" if value else "q3_k" if output or down else "q2_k"
    if format == "q2_k_experts":
        return "q5_k" if "_exps." not in name else "q3_k" if down else "q2_k"
    return format


def type_of(name, inputs, kind, layer, layers, format):
    """The block format of a tensor."""
    if kind == "norm":
        return "ones_f32"
    if kind == "correction":
        return "zeros_f32"
    if kind in ("router", "bias"):
        return "f32"
    chosen = matrix_type(name, kind, layer, layers, format)
    if inputs % blocks.BLOCKS[chosen].weights != 0:
        chosen = FALLBACK.get(chosen, "f16")
    return chosen if inputs % blocks.BLOCKS[chosen].weights == 0 else "f16"


def text(value):
    value = value.encode()
    return struct.pack("<Q", len(value)) + value


def number(kind, value):
    if kind == STRING:
        return text(value)
    return struct.pack({UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?"}[kind], value)


def entry(key, kind, value):
    return text(key) + struct.pack("<I", kind) + number(kind, value)


def array(key, kind, values):
    body = b"".join(number(kind, value) for value in values)
    return text(key) + struct.pack("<IIQ", ARRAY, kind, len(values)) + body


def model_metadata(shape, name, format):
    latent = shape.is_latent
    architecture = "deepseek2" if latent else "glm4moe"
    yield entry("general.architecture", STRING, architecture)
    yield entry("general.type", STRING, "model")
    yield entry("general.name", STRING, name)
    yield entry("general.file_type", UINT32, FORMATS[format])
    yield entry("general.quantization_version", UINT32, 2)
    integers = {
        "block_count": shape.layers + shape.drafts, "context_length": 202752, "embedding_length": shape.hidden,
        "feed_forward_length": shape.dense, "attention.head_count": shape.heads,
        "attention.head_count_kv": 1 if latent else shape.kv_heads, "expert_count": shape.experts,
        "expert_used_count": shape.top_k, "expert_group_count": 1, "expert_group_used_count": 1,
        "expert_feed_forward_length": shape.expert, "expert_shared_count": 1,
        "leading_dense_block_count": shape.dense_layers, "expert_gating_func": 2, "vocab_size": shape.vocab,
        "rope.dimension_count": shape.rope,
        "attention.key_length": shape.kv_lora + shape.rope if latent else shape.head_dim,
        "attention.value_length": shape.kv_lora if latent else shape.head_dim,
    }
    if latent:
        integers |= {"attention.q_lora_rank": shape.q_lora, "attention.kv_lora_rank": shape.kv_lora,
                     "attention.key_length_mla": shape.nope + shape.rope,
                     "attention.value_length_mla": shape.value}
    if shape.drafts:
        integers["nextn_predict_layers"] = 1
    for key, value in integers.items():
        yield entry(f"{architecture}.{key}", UINT32, value)
    yield entry(f"{architecture}.rope.freq_base", FLOAT32, 1e6)
    yield entry(f"{architecture}.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5)
    yield entry(f"{architecture}.expert_weights_scale", FLOAT32, shape.routed_scale)
    yield entry(f"{architecture}.expert_weights_norm", BOOL, True)


def tokenizer_metadata(tiny, vocab):
    """The small model's tokenizer; the rows of the head beyond its tokens are padding (type 5)."""
    tokenizer = json.loads((tiny / "tokenizer.json").read_text())
    tokens = [f"[PAD{i}]" for i in range(vocab)]
    types = [5] * vocab
    for token, index in tokenizer["model"]["vocab"].items():
        tokens[index], types[index] = token, 1
    special = {}
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], 3 if added["special"] else 4
        special[added["content"]] = added["id"]
    merges = [one if isinstance(one, str) else " ".join(one) for one in tokenizer["model"]["merges"]]
    yield entry("tokenizer.ggml.model", STRING, "gpt2")
    yield entry("tokenizer.ggml.pre", STRING, "glm4")
    yield array("tokenizer.ggml.tokens", STRING, tokens)
    yield array("tokenizer.ggml.token_type", INT32, types)
    yield array("tokenizer.ggml.merges", STRING, merges)
    for key, token in (("eos", "<|endoftext|>"), ("padding", "<|endoftext|>"), ("unknown", "<|endoftext|>"),
                       ("bos", "[gMASK]"), ("eot", "<|user|>"), ("eom", "<|observation|>")):
        yield entry(f"tokenizer.ggml.{key}_token_id", UINT32, special[token])
    yield entry("tokenizer.ggml.add_bos_token", BOOL, False)
    yield entry("tokenizer.ggml.add_eos_token", BOOL, False)
    yield entry("tokenizer.chat_template", STRING, (tiny / "chat_template.jinja").read_text())


def padding(offset):
    return b"\0" * (-offset % ALIGNMENT)


def write(path, shape, format, source, tiny):
    """Writes the file; returns its bytes. `tiny`: where the tokenizer comes from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = list(model_metadata(shape, path.stem, format)) + list(tokenizer_metadata(tiny, shape.vocab))
    infos, plan, offset = [], [], 0
    for name, sizes, kind, layer, key in gguf_tensors(shape):
        chosen = type_of(name, sizes[-1], kind, layer, shape.layers, format)
        block = blocks.BLOCKS[chosen]
        size = math.prod(sizes) // block.weights * block.bytes
        infos.append(text(name) + struct.pack("<I", len(sizes)) +
                     struct.pack(f"<{len(sizes)}Q", *reversed(sizes)) + struct.pack("<IQ", block.ggml, offset))
        plan.append((key, chosen, 2048 if kind == "bias" else sizes[-1], size))
        offset += size + len(padding(size))
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(infos), len(metadata)) + b"".join(metadata + infos)
    with open(path, "wb") as out:
        out.write(header + padding(len(header)))
        for key, chosen, inputs, size in plan:
            for piece in source.pieces(chosen, inputs, size, key):
                out.write(piece)
            out.write(padding(size))
        total = out.tell()
    print(f"{path}: {total / 1e9:.2f} GB", file=sys.stderr)
    return total
