"""What a GLM-4.x checkpoint holds: its sizes, its config.json and its tensors under Hugging Face's names."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a model. Those of latent attention are 0 where it is not used (glm4_moe)."""

    hidden: int
    heads: int
    dense: int  # columns of a dense layer
    expert: int  # columns of an expert
    experts: int
    top_k: int
    routed_scale: float
    kv_heads: int = 0
    head_dim: int = 0
    q_lora: int = 0
    kv_lora: int = 0
    nope: int = 0
    rope: int = 64
    value: int = 0
    dense_layers: int = 1
    moe_layers: int = 1
    vocab: int = 4096
    drafts: bool = False  # a layer for drafts (MTP) behind the last one

    @property
    def is_latent(self):
        return self.kv_lora > 0

    @property
    def layers(self):
        return self.dense_layers + self.moe_layers


# The depths and vocabularies here are defaults that keep a file small; make_checkpoint.py takes others.
SHAPES = {
    "glm47": Shape(hidden=5120, heads=96, kv_heads=8, head_dim=128, dense=12288, expert=1536, experts=160, top_k=8,
                   routed_scale=2.5, vocab=2048),
    "flash": Shape(hidden=2048, heads=20, q_lora=768, kv_lora=512, nope=192, rope=64, value=256, dense=10240,
                   expert=1536, experts=64, top_k=4, routed_scale=1.8, vocab=154880),
    "mid": Shape(hidden=2048, heads=32, kv_heads=4, head_dim=128, dense=6144, expert=768, experts=32, top_k=8,
                 routed_scale=2.5, dense_layers=0, moe_layers=4),
    "tiny": Shape(hidden=256, heads=4, kv_heads=2, head_dim=64, rope=32, dense=512, expert=256, experts=8, top_k=2,
                  routed_scale=2.5, vocab=2048),
    "tiny-flash": Shape(hidden=256, heads=4, q_lora=128, kv_lora=256, nope=64, rope=32, value=128, dense=512,
                        expert=256, experts=8, top_k=2, routed_scale=1.8, vocab=2048),
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """`kind` is what decides its type: matrix, embedding, head, router, norm, bias, correction, latent (kv_b_proj,
    which some formats store as two) or experts: a stack whose name has `*` for the expert and whose shape starts with
    their number."""

    name: str
    shape: tuple
    kind: str = "matrix"
    copy_of: str = ""  # a tensor with the same numbers

    @property
    def inputs(self):
        return self.shape[-1]


def attention(shape, prefix):
    if not shape.is_latent:
        for name, heads in (("q", shape.heads), ("k", shape.kv_heads), ("v", shape.kv_heads)):
            yield Tensor(f"{prefix}{name}_proj.weight", (heads * shape.head_dim, shape.hidden))
            yield Tensor(f"{prefix}{name}_proj.bias", (heads * shape.head_dim,), "bias")
        yield Tensor(f"{prefix}o_proj.weight", (shape.hidden, shape.heads * shape.head_dim))
        yield Tensor(f"{prefix}q_norm.weight", (shape.head_dim,), "norm")
        yield Tensor(f"{prefix}k_norm.weight", (shape.head_dim,), "norm")
        return
    yield Tensor(f"{prefix}q_a_proj.weight", (shape.q_lora, shape.hidden))
    yield Tensor(f"{prefix}q_a_layernorm.weight", (shape.q_lora,), "norm")
    yield Tensor(f"{prefix}q_b_proj.weight", (shape.heads * (shape.nope + shape.rope), shape.q_lora))
    yield Tensor(f"{prefix}kv_a_proj_with_mqa.weight", (shape.kv_lora + shape.rope, shape.hidden))
    yield Tensor(f"{prefix}kv_a_layernorm.weight", (shape.kv_lora,), "norm")
    yield Tensor(f"{prefix}kv_b_proj.weight", (shape.heads * (shape.nope + shape.value), shape.kv_lora), "latent")
    yield Tensor(f"{prefix}o_proj.weight", (shape.hidden, shape.heads * shape.value))


def feed_forward(shape, prefix, is_dense):
    hidden = shape.hidden
    if not is_dense:
        yield Tensor(f"{prefix}gate.weight", (shape.experts, hidden), "router")
        yield Tensor(f"{prefix}gate.e_score_correction_bias", (shape.experts,), "correction")
        for name, matrix in (("gate", (shape.expert, hidden)), ("up", (shape.expert, hidden)),
                             ("down", (hidden, shape.expert))):
            yield Tensor(f"{prefix}experts.*.{name}_proj.weight", (shape.experts, *matrix), "experts")
        prefix += "shared_experts."
    columns = shape.dense if is_dense else shape.expert
    yield Tensor(f"{prefix}gate_proj.weight", (columns, hidden))
    yield Tensor(f"{prefix}up_proj.weight", (columns, hidden))
    yield Tensor(f"{prefix}down_proj.weight", (hidden, columns))


def layer_tensors(shape, layer):
    prefix = f"model.layers.{layer}."
    yield Tensor(prefix + "input_layernorm.weight", (shape.hidden,), "norm")
    yield from attention(shape, prefix + "self_attn.")
    yield Tensor(prefix + "post_attention_layernorm.weight", (shape.hidden,), "norm")
    yield from feed_forward(shape, prefix + "mlp.", layer < shape.dense_layers)


def draft_tensors(shape):
    """The layer for drafts, with its copies of embedding and head, as GLM-4.5 and GLM-4.7 have them."""
    prefix = f"model.layers.{shape.layers}."
    yield Tensor(prefix + "embed_tokens.weight", (shape.vocab, shape.hidden), "embedding", "model.embed_tokens.weight")
    yield Tensor(prefix + "enorm.weight", (shape.hidden,), "norm")
    yield Tensor(prefix + "hnorm.weight", (shape.hidden,), "norm")
    yield Tensor(prefix + "eh_proj.weight", (shape.hidden, 2 * shape.hidden))
    yield from layer_tensors(shape, shape.layers)
    yield Tensor(prefix + "shared_head.norm.weight", (shape.hidden,), "norm")
    yield Tensor(prefix + "shared_head.head.weight", (shape.vocab, shape.hidden), "head", "lm_head.weight")


def tensors(shape):
    """Every tensor, in the order of the computation."""
    yield Tensor("model.embed_tokens.weight", (shape.vocab, shape.hidden), "embedding")
    for layer in range(shape.layers):
        yield from layer_tensors(shape, layer)
    yield Tensor("model.norm.weight", (shape.hidden,), "norm")
    yield Tensor("lm_head.weight", (shape.vocab, shape.hidden), "head")
    if shape.drafts:
        yield from draft_tensors(shape)


def config(shape, tokens):
    """config.json; `tokens` is that of the tokenizer's model, for the ids of the special tokens."""
    result = {
        "architectures": ["Glm4MoeLiteForCausalLM" if shape.is_latent else "Glm4MoeForCausalLM"],
        "model_type": "glm4_moe_lite" if shape.is_latent else "glm4_moe",
        "dtype": "bfloat16",
        "attention_bias": not shape.is_latent,
        "attention_dropout": 0.0,
        "eos_token_id": tokens["eos_token_id"],
        "pad_token_id": tokens["pad_token_id"],
        "first_k_dense_replace": shape.dense_layers,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.dense,
        "max_position_embeddings": 202752,
        "moe_intermediate_size": shape.expert,
        "n_group": 1,
        "n_routed_experts": shape.experts,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": shape.heads,
        "num_experts_per_tok": shape.top_k,
        "num_hidden_layers": shape.layers,
        "num_nextn_predict_layers": int(shape.drafts),
        "partial_rotary_factor": 1.0 if shape.is_latent else 0.5,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "routed_scaling_factor": shape.routed_scale,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "use_cache": True,
        "vocab_size": shape.vocab,
    }
    if shape.is_latent:
        result |= {"num_key_value_heads": shape.heads, "q_lora_rank": shape.q_lora, "kv_lora_rank": shape.kv_lora,
                   "qk_nope_head_dim": shape.nope, "qk_rope_head_dim": shape.rope, "v_head_dim": shape.value,
                   "topk_method": "noaux_tc"}
    else:
        result |= {"num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim, "use_qk_norm": True}
    return result
