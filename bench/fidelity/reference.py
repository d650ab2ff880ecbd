"""What the logits should be: the Llama model as it came, before it was re-expressed.

`plain_logits` computes it in numpy, in float32. Hugging Face's transformers (check_reference.py) computes it twice in
float32: as LlamaForCausalLM from the same weights, and as Glm4MoeForCausalLM from the checkpoint that lockstep reads.
"""

import numpy


def rotate(values, cosines, sines):
    half = values.shape[-1] // 2
    first, second = values[..., :half], values[..., half:]
    return numpy.concatenate([first * cosines - second * sines, second * cosines + first * sines], -1)


def norm(values, weights, epsilon):
    return values / numpy.sqrt((values**2).mean(-1, keepdims=True) + numpy.float32(epsilon)) * weights


def product(llama, name, values, squares):
    if squares is not None:
        squares[name] = (values**2).mean(0)
    return values @ llama.tensors[name].T


def attention(llama, values, block, cosines, sines, squares):
    length, head_dim = len(values), llama.head_dim

    def heads(name, count):
        rows = product(llama, f"{block}attn_{name}.weight", values, squares)
        return rows.reshape(length, count, head_dim).swapaxes(0, 1)

    queries = rotate(heads("q", llama.heads), cosines, sines)
    keys = rotate(heads("k", llama.kv_heads), cosines, sines)
    share = llama.heads // llama.kv_heads
    keys, rows = (numpy.repeat(one, share, 0) for one in (keys, heads("v", llama.kv_heads)))
    scores = queries @ keys.swapaxes(1, 2) / numpy.float32(numpy.sqrt(head_dim))
    scores[:, numpy.triu(numpy.ones((length, length), bool), 1)] = -numpy.inf
    weights = numpy.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return product(llama, block + "attn_output.weight", (weights @ rows).swapaxes(0, 1).reshape(length, -1), squares)


def plain_logits(llama, ids, squares=None):
    """[tokens, vocab] in float32. `squares`: takes the mean square of every input of every layer's matrices."""
    tensors = llama.tensors
    values = tensors["token_embd.weight"][ids]
    powers = numpy.arange(0, llama.head_dim, 2) / llama.head_dim
    angles = numpy.outer(numpy.arange(len(ids)), llama.theta**-powers)
    cosines, sines = (function(angles).astype(numpy.float32) for function in (numpy.cos, numpy.sin))
    for layer in range(llama.layers):
        block = f"blk.{layer}."
        values = values + attention(llama, norm(values, tensors[block + "attn_norm.weight"], llama.epsilon), block,
                                    cosines, sines, squares)
        normed = norm(values, tensors[block + "ffn_norm.weight"], llama.epsilon)
        gate = product(llama, block + "ffn_gate.weight", normed, squares)
        up = product(llama, block + "ffn_up.weight", normed, squares)
        values = values + product(llama, block + "ffn_down.weight", gate / (1 + numpy.exp(-gate)) * up, squares)
    last = norm(values, tensors["output_norm.weight"], llama.epsilon)
    return last @ tensors["token_embd.weight"].T


def hugging_face_llama(llama):
    import torch
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=llama.hidden, num_attention_heads=llama.heads, num_key_value_heads=llama.kv_heads,
        num_hidden_layers=llama.layers, intermediate_size=llama.columns, rope_theta=llama.theta,
        rms_norm_eps=llama.epsilon, vocab_size=len(llama.tensors["token_embd.weight"]), tie_word_embeddings=True,
        max_position_embeddings=llama.context, rope_parameters={"rope_type": "default", "rope_theta": llama.theta})
    config._attn_implementation = "eager"
    model = transformers.LlamaForCausalLM(config).float().eval()
    names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
             "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    state = {"model.embed_tokens.weight": llama.tensors["token_embd.weight"],
             "lm_head.weight": llama.tensors["token_embd.weight"],
             "model.norm.weight": llama.tensors["output_norm.weight"]}
    for layer in range(llama.layers):
        for ours, theirs in names.items():
            state[f"model.layers.{layer}.{theirs}.weight"] = llama.tensors[f"blk.{layer}.{ours}.weight"]
    model.load_state_dict({name: torch.tensor(values) for name, values in state.items()})
    return model


def hugging_face(make_model, texts, prompts, count):
    """Logits of every text and the greedy continuation of every prompt (lists of ids), and the versions used."""
    import torch
    import transformers

    model = make_model()
    with torch.no_grad():
        logits = [model(torch.tensor([ids])).logits[0].float().numpy() for ids in texts]
        follow = [model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False, num_beams=1,
                                 eos_token_id=2, pad_token_id=2)[0].tolist() for ids in prompts]
    return logits, follow, f"transformers {transformers.__version__}, torch {torch.__version__}"


def hugging_face_glm(folder):
    import torch
    import transformers

    return transformers.Glm4MoeForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                           attn_implementation="eager").eval()


