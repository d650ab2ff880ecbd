"""A small glm4_moe model with its MTP layer, written for training (PyTorch, float32).

The forward pass is that of GLM-4.5/4.7: pre-norm layers, biased q/k/v projections with per-head
RMS norm before RoPE, RoPE on the first half of each head (half-split pairs), grouped-query
attention, one or more dense layers and then mixture-of-experts layers with sigmoid routing, a
correction bias for the choice only, and one shared expert.
"""

import torch
import torch.nn.functional as F
from torch import nn

CONFIG = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "intermediate_size": 384,
    "moe_intermediate_size": 96,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "partial_rotary_factor": 0.5,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 32768,
}


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class MLP(nn.Module):
    """down(silu(gate x) * up x); gate and up are one parameter [2, inner, hidden]."""

    def __init__(self, hidden, inner):
        super().__init__()
        self.gate_up = nn.Parameter(torch.randn(2, inner, hidden) * hidden**-0.5)
        self.down = nn.Parameter(torch.randn(hidden, inner) * inner**-0.5 * 0.3)

    def forward(self, x):
        gate, up = F.linear(x, self.gate_up.flatten(0, 1)).chunk(2, -1)
        return F.linear(F.silu(gate) * up, self.down)


class MoE(nn.Module):
    """Routed experts plus a shared one.

    `bias` is the correction bias: it takes part in the choice of experts, not in their weights.
    It is not trained by gradient; the training loop moves it against the `load` seen.
    """

    def __init__(self, config):
        super().__init__()
        hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
        self.experts = config["n_routed_experts"]
        self.top_k = config["num_experts_per_tok"]
        self.scale = config["routed_scaling_factor"]
        self.gate_up = nn.Parameter(torch.randn(self.experts, 2, inner, hidden) * hidden**-0.5)
        self.down = nn.Parameter(torch.randn(self.experts, hidden, inner) * inner**-0.5 * 0.3)
        self.gate = nn.Parameter(torch.randn(self.experts, hidden) * 0.02)
        self.shared = MLP(hidden, inner * config["n_shared_experts"])
        self.register_buffer("bias", torch.zeros(self.experts))
        self.register_buffer("load", torch.zeros(self.experts))

    def route(self, x):
        """-> (chosen experts, their weights), both [tokens, top_k]."""
        scores = torch.sigmoid(F.linear(x, self.gate))
        chosen = torch.topk(scores.detach() + self.bias, self.top_k, -1).indices
        weights = scores.gather(1, chosen)
        return chosen, weights / (weights.sum(-1, keepdim=True) + 1e-20) * self.scale

    def forward(self, x):
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        chosen, weights = self.route(x)
        # Sort the (token, expert) pairs by expert, so that each expert works on one block of rows.
        flat = chosen.flatten()
        order = torch.argsort(flat, stable=True)
        counts = torch.bincount(flat, minlength=self.experts)
        if self.training:
            self.load += counts
        token = order // self.top_k
        blocks = x.index_select(0, token).split(counts.tolist())
        outputs = []
        for block, gate_up, down in zip(blocks, self.gate_up.flatten(1, 2), self.down):
            if len(block):
                gate, up = F.linear(block, gate_up).chunk(2, -1)
                outputs.append(F.linear(F.silu(gate) * up, down))
        routed = torch.cat(outputs) * weights.flatten().index_select(0, order)[:, None]
        return self.shared(x).index_add(0, token, routed).view(shape)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        hidden, eps = config["hidden_size"], config["rms_norm_eps"]
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.head_dim = config["head_dim"]
        self.q = nn.Linear(hidden, self.heads * self.head_dim)
        self.k = nn.Linear(hidden, self.kv_heads * self.head_dim)
        self.v = nn.Linear(hidden, self.kv_heads * self.head_dim)
        self.o = nn.Linear(self.heads * self.head_dim, hidden, bias=False)
        self.q_norm, self.k_norm = RMSNorm(self.head_dim, eps), RMSNorm(self.head_dim, eps)
        for layer in (self.q, self.k, self.v):
            nn.init.normal_(layer.weight, std=hidden**-0.5)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.o.weight, std=(self.heads * self.head_dim) ** -0.5 * 0.3)

    @staticmethod
    def rotate(x, cos, sin):
        """RoPE on the first 2 * half dims, in pairs (i, i + half); the rest passes."""
        half = cos.shape[-1]
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)

    def forward(self, x, cos, sin, cache=None):
        batch, length, _ = x.shape
        q = self.q_norm(self.q(x).view(batch, length, self.heads, self.head_dim))
        k = self.k_norm(self.k(x).view(batch, length, self.kv_heads, self.head_dim))
        v = self.v(x).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        q = self.rotate(q, cos, sin).transpose(1, 2)
        k = self.rotate(k, cos, sin).transpose(1, 2)
        if cache is not None:
            if self in cache:
                k = torch.cat([cache[self][0], k], 2)
                v = torch.cat([cache[self][1], v], 2)
            cache[self] = (k, v)
        total = k.shape[2]
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        mask = None
        if total != length:
            mask = torch.ones(length, total, dtype=torch.bool).tril(total - length)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o(y.transpose(1, 2).reshape(batch, length, -1))


class Layer(nn.Module):
    def __init__(self, config, dense):
        super().__init__()
        hidden, eps = config["hidden_size"], config["rms_norm_eps"]
        self.norm1, self.norm2 = RMSNorm(hidden, eps), RMSNorm(hidden, eps)
        self.attention = Attention(config)
        self.mlp = MLP(hidden, config["intermediate_size"]) if dense else MoE(config)

    def forward(self, x, cos, sin, cache=None):
        x = x + self.attention(self.norm1(x), cos, sin, cache)
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    """The main model and its MTP layer, which share the embedding and the output head.

    `cache` arguments are dictionaries that the attention layers fill with keys and values; pass
    the same one again to continue a sequence.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        hidden, vocab, eps = config["hidden_size"], config["vocab_size"], config["rms_norm_eps"]
        self.embed = nn.Embedding(vocab, hidden)
        nn.init.normal_(self.embed.weight, std=0.5)
        self.head = nn.Parameter(torch.randn(vocab, hidden) * 0.02)
        self.layers = nn.ModuleList([
            Layer(config, dense=i < config["first_k_dense_replace"])
            for i in range(config["num_hidden_layers"])
        ])
        self.norm = RMSNorm(hidden, eps)
        self.mtp_embed_norm, self.mtp_hidden_norm = RMSNorm(hidden, eps), RMSNorm(hidden, eps)
        self.mtp_join = nn.Linear(2 * hidden, hidden, bias=False)
        self.mtp_layer = Layer(config, dense=False)
        self.mtp_norm = RMSNorm(hidden, eps)
        half = int(config["head_dim"] * config["partial_rotary_factor"]) // 2
        frequency = config["rope_theta"] ** (-torch.arange(half).float() / half)
        angle = torch.arange(config["max_position_embeddings"]).float()[:, None] * frequency
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def rope(self, start, length, positions=None):
        """cos and sin for `positions` if given, else for start, start + 1, ..."""
        if positions is not None:
            return self.cos[positions[:length], None], self.sin[positions[:length], None]
        return self.cos[start : start + length, None], self.sin[start : start + length, None]

    def hidden(self, ids, start=0, cache=None, positions=None):
        """-> the hidden states after the final norm, [batch, length, hidden]."""
        x = self.embed(ids)
        cos, sin = self.rope(start, ids.shape[1], positions)
        for layer in self.layers:
            x = layer(x, cos, sin, cache)
        return self.norm(x)

    def draft_hidden(self, hidden, next_ids, start=0, cache=None, positions=None):
        """MTP: from the hidden states of positions t and the tokens t+1, what predicts t+2."""
        joined = [self.mtp_embed_norm(self.embed(next_ids)), self.mtp_hidden_norm(hidden)]
        x = self.mtp_join(torch.cat(joined, -1))
        cos, sin = self.rope(start, next_ids.shape[1], positions)
        return self.mtp_norm(self.mtp_layer(x, cos, sin, cache))

    def logits(self, hidden):
        return F.linear(hidden, self.head)

    def losses(self, ids, weights, with_mtp, positions=None):
        """-> (next-token loss, MTP loss or 0): cross entropies, weighted per target token."""
        inputs, targets, weights = ids[:, :-1], ids[:, 1:], weights[:, 1:]
        hidden = self.hidden(inputs, positions=positions)
        main = self.weighted_loss(hidden, targets, weights)
        if not with_mtp:
            return main, torch.zeros(())
        draft = self.draft_hidden(hidden[:, :-1], targets[:, :-1], positions=positions)
        return main, self.weighted_loss(draft, targets[:, 1:], weights[:, 1:])

    def weighted_loss(self, hidden, targets, weights):
        loss = F.cross_entropy(
            self.logits(hidden).flatten(0, 1), targets.flatten(), reduction="none")
        return (loss * weights.flatten()).sum() / weights.sum()
