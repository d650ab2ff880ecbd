"""Plain-torch reference of GLM-4.x MoE decoders (glm4_moe, glm4_moe_lite/MLA, MTP).

One sequence at a time, no batching tricks, weights under their official checkpoint names. The goldens hold how far it
is from transformers (`ref_f32_vs_hf_f32_max_abs`); it made those for which transformers has no path: MTP, FP8 with
rounded activations, weights that were dequantized from GGUF or MLX blocks, float64. Needs torch and safetensors.
"""
from __future__ import annotations
import json, os
import torch
from safetensors import safe_open


def load_checkpoint(path: str, dtype=torch.float32) -> tuple[dict, dict]:
    cfg = json.load(open(os.path.join(path, "config.json")))
    idx = json.load(open(os.path.join(path, "model.safetensors.index.json")))
    w = {}
    for shard in sorted(set(idx["weight_map"].values())):
        with safe_open(os.path.join(path, shard), "pt") as f:
            for k in f.keys():
                w[k] = f.get_tensor(k)
    return cfg, w


def rms_norm(x, weight, eps):
    v = x.pow(2).mean(-1, keepdim=True)
    return x * torch.rsqrt(v + eps) * weight


def rope_tables(dim: int, theta: float, positions: torch.Tensor, dtype):
    """cos/sin of shape [T, dim/2]; angle = pos * theta^(-2i/dim)."""
    inv = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=dtype) / dim))
    ang = positions.to(dtype)[:, None] * inv[None, :]
    return ang.cos(), ang.sin()


def rope_half(x, cos, sin):
    """Pairs (i, i + d/2): the glm4_moe layout.  x: [T, H, d]."""
    d = x.shape[-1] // 2
    a, b = x[..., :d], x[..., d:]
    c, s = cos[:, None, :], sin[:, None, :]
    return torch.cat([a * c - b * s, b * c + a * s], -1)


def rope_interleaved(x, cos, sin):
    """Pairs (2i, 2i+1), result kept interleaved: the glm4_moe_lite layout."""
    a, b = x[..., 0::2], x[..., 1::2]
    c, s = cos[:, None, :], sin[:, None, :]
    return torch.stack([a * c - b * s, b * c + a * s], -1).flatten(-2)


def route(x, gate_w, bias, *, top_k, n_group, topk_group, norm, scale):
    """Sigmoid router.  Returns (logits, idx sorted by weight descending, weights)."""
    logits = x @ gate_w.T
    score = torch.sigmoid(logits)
    choice = score + bias
    T, E = choice.shape
    if n_group > 1:
        g = choice.view(T, n_group, E // n_group)
        gs = g.topk(2, -1)[0].sum(-1)
        keep = torch.zeros_like(gs).scatter_(1, gs.topk(topk_group, -1)[1], 1).bool()
        choice = g.masked_fill(~keep[..., None], float("-inf")).view(T, E)
    idx = choice.topk(top_k, -1)[1]
    wt = score.gather(1, idx)
    if norm:
        wt = wt / (wt.sum(-1, keepdim=True) + 1e-20)
    wt = wt * scale
    wt, order = torch.sort(wt, stable=True, dim=-1, descending=True)
    return logits, idx.gather(1, order), wt


class Ref:
    def __init__(self, cfg: dict, weights: dict, dtype=torch.float32, linear=None):
        self.c, self.dt = cfg, dtype
        self.w = {k: v.to(dtype) for k, v in weights.items() if v.is_floating_point()}
        self.linear_hook = linear            # optional f(name, x, W) -> y
        rp = cfg.get("rope_parameters") or {}
        self.theta = rp.get("rope_theta", cfg.get("rope_theta"))
        self.partial = rp.get("partial_rotary_factor", cfg.get("partial_rotary_factor", 1.0))
        self.mla = cfg["model_type"] == "glm4_moe_lite"
        self.eps = cfg["rms_norm_eps"]
        self.rec = None

    def keep(self, name, t):
        if self.rec is not None:
            self.rec[name] = t.detach().to(torch.float32).clone() if t.is_floating_point() else t.clone()

    def lin(self, name, x):
        W = self.w[name + ".weight"]
        y = self.linear_hook(name, x, W) if self.linear_hook else x @ W.T
        b = self.w.get(name + ".bias")
        return y if b is None else y + b

    # ---- attention -------------------------------------------------------
    def gqa(self, p, x, pos, kv):
        c, T = self.c, x.shape[0]
        hd = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
        q = self.lin(p + "q_proj", x).view(T, -1, hd)
        k = self.lin(p + "k_proj", x).view(T, -1, hd)
        v = self.lin(p + "v_proj", x).view(T, -1, hd)
        if c.get("use_qk_norm"):
            q = rms_norm(q, self.w[p + "q_norm.weight"], self.eps)
            k = rms_norm(k, self.w[p + "k_norm.weight"], self.eps)
        r = int(hd * self.partial)
        cos, sin = rope_tables(r, self.theta, pos, self.dt)
        q = torch.cat([rope_half(q[..., :r], cos, sin), q[..., r:]], -1)
        k = torch.cat([rope_half(k[..., :r], cos, sin), k[..., r:]], -1)
        if kv is not None and "k" in kv:
            k, v = torch.cat([kv["k"], k]), torch.cat([kv["v"], v])
        if kv is not None:
            kv["k"], kv["v"] = k, v
        rep = q.shape[1] // k.shape[1]       # query head h reads kv head h // rep
        K, V = k.repeat_interleave(rep, 1), v.repeat_interleave(rep, 1)
        o = self.softmax_attend(q, K, V, hd ** -0.5)
        return self.lin(p + "o_proj", o.reshape(T, -1))

    def softmax_attend(self, q, K, V, scale):
        T, S = q.shape[0], K.shape[0]
        s = torch.einsum("thd,shd->hts", q, K) * scale
        mask = torch.arange(S)[None, :] > (torch.arange(T)[:, None] + (S - T))
        s = s.masked_fill(mask, float("-inf"))
        return torch.einsum("hts,shd->thd", torch.softmax(s, -1), V)

    def mla_attn(self, p, x, pos, kv, absorbed=False):
        c, T, H = self.c, x.shape[0], self.c["num_attention_heads"]
        dn, dr, dv, R = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"], c["kv_lora_rank"]
        if c.get("q_lora_rank"):
            q = self.lin(p + "q_b_proj", rms_norm(self.lin(p + "q_a_proj", x), self.w[p + "q_a_layernorm.weight"], 1e-6))
        else:
            q = self.lin(p + "q_proj", x)
        q = q.view(T, H, dn + dr)
        qn, qr = q[..., :dn], q[..., dn:]
        ckv = self.lin(p + "kv_a_proj_with_mqa", x)
        lat = rms_norm(ckv[:, :R], self.w[p + "kv_a_layernorm.weight"], 1e-6)
        kr = ckv[:, None, R:]
        cos, sin = rope_tables(dr, self.theta, pos, self.dt)
        f = rope_interleaved if c.get("rope_interleave", True) else rope_half
        qr, kr = f(qr, cos, sin), f(kr, cos, sin)[:, 0]
        if kv is not None and "lat" in kv:
            lat, kr = torch.cat([kv["lat"], lat]), torch.cat([kv["kr"], kr])
        if kv is not None:
            kv["lat"], kv["kr"] = lat, kr
        B = self.w[p + "kv_b_proj.weight"].view(H, dn + dv, R)
        Bk, Bv = B[:, :dn], B[:, dn:]
        scale = (dn + dr) ** -0.5
        if absorbed:                          # MQA over the latent: K = [lat, kr], V = lat
            qa = torch.einsum("thd,hdr->thr", qn, Bk)
            s = (torch.einsum("thr,sr->hts", qa, lat) + torch.einsum("thd,sd->hts", qr, kr)) * scale
            S = lat.shape[0]
            mask = torch.arange(S)[None, :] > (torch.arange(T)[:, None] + (S - T))
            a = torch.softmax(s.masked_fill(mask, float("-inf")), -1)
            o = torch.einsum("thr,hdr->thd", torch.einsum("hts,sr->thr", a, lat), Bv)
        else:
            kn = torch.einsum("sr,hdr->shd", lat, Bk)
            V = torch.einsum("sr,hdr->shd", lat, Bv)
            K = torch.cat([kn, kr[:, None].expand(-1, H, -1)], -1)
            o = self.softmax_attend(torch.cat([qn, qr], -1), K, V, scale)
        return self.lin(p + "o_proj", o.reshape(T, -1))

    # ---- feed-forward ----------------------------------------------------
    def mlp(self, p, x):
        g = self.lin(p + "gate_proj", x)
        return self.lin(p + "down_proj", torch.nn.functional.silu(g) * self.lin(p + "up_proj", x))

    def moe(self, p, x, tag):
        c = self.c
        lg, idx, wt = route(x, self.w[p + "gate.weight"], self.w[p + "gate.e_score_correction_bias"],
                            top_k=c["num_experts_per_tok"], n_group=c["n_group"], topk_group=c["topk_group"],
                            norm=c["norm_topk_prob"], scale=c["routed_scaling_factor"])
        self.keep(tag + ".router_logits", lg); self.keep(tag + ".topk_idx", idx); self.keep(tag + ".topk_weight", wt)
        out = torch.zeros_like(x)
        for e in range(c["n_routed_experts"]):
            t, k = torch.where(idx == e)
            if len(t):
                out.index_add_(0, t, self.mlp(f"{p}experts.{e}.", x[t]) * wt[t, k][:, None])
        self.keep(tag + ".routed_out", out)
        return out + self.mlp(p + "shared_experts.", x)

    def is_moe(self, i):
        types = self.c.get("mlp_layer_types")
        if types and i < len(types):
            return types[i] == "sparse"
        return i >= self.c.get("first_k_dense_replace", 1)

    def layer(self, i, x, pos, kv=None, absorbed=False):
        p = f"model.layers.{i}."
        h = rms_norm(x, self.w[p + "input_layernorm.weight"], self.eps)
        a = self.mla_attn(p + "self_attn.", h, pos, kv, absorbed) if self.mla else self.gqa(p + "self_attn.", h, pos, kv)
        self.keep(f"layer.{i}.attn_out", a)
        x = x + a
        h = rms_norm(x, self.w[p + "post_attention_layernorm.weight"], self.eps)
        self.keep(f"layer.{i}.mlp_in", h)
        m = self.moe(p + "mlp.", h, f"layer.{i}") if self.is_moe(i) else self.mlp(p + "mlp.", h)
        self.keep(f"layer.{i}.mlp_out", m)
        x = x + m
        self.keep(f"layer.{i}.out", x)
        return x

    def forward(self, ids, cache=None, absorbed=False, record=None):
        """ids: 1-D LongTensor.  cache: list of dicts (filled in place) or None.
        Returns (logits [T, V], final-norm hidden [T, D])."""
        self.rec = record
        n0 = 0
        if cache is not None and cache and cache[0]:
            n0 = next(iter(cache[0].values())).shape[0]
        pos = torch.arange(n0, n0 + len(ids))
        x = self.w["model.embed_tokens.weight"][ids]
        self.keep("embed", x)
        for i in range(self.c["num_hidden_layers"]):
            x = self.layer(i, x, pos, None if cache is None else cache[i], absorbed)
        h = rms_norm(x, self.w["model.norm.weight"], self.eps)
        self.keep("final_norm", h)
        lg = h @ self.w.get("lm_head.weight", self.w["model.embed_tokens.weight"]).T \
            if self.linear_hook is None else self.lin("lm_head", h)
        self.rec = None
        return lg, h

    # ---- multi-token prediction -----------------------------------------
    def mtp(self, next_ids, prev_hidden, *, pos0=0, mask_pos0=False, kv=None, record=None):
        """One MTP pass.  prev_hidden[t]: the main model's FINAL-NORM hidden state of position pos0+t;
        next_ids[t]: the token at position pos0+t+1.  Row t of the result predicts position pos0+t+2.
        mask_pos0=True zeroes the embedding where the position is 0, as vLLM does; HF, SGLang and
        llama.cpp do not.  Returns (draft logits, hidden after shared_head.norm, hidden before it)."""
        self.rec = record
        L = self.c["num_hidden_layers"]
        p = f"model.layers.{L}."
        pos = torch.arange(pos0, pos0 + len(next_ids))
        e = self.w.get(p + "embed_tokens.weight", self.w["model.embed_tokens.weight"])[next_ids].clone()
        if mask_pos0:
            e[pos == 0] = 0
        z = torch.cat([rms_norm(e, self.w[p + "enorm.weight"], self.eps),
                       rms_norm(prev_hidden, self.w[p + "hnorm.weight"], self.eps)], -1)
        x = self.lin(p + "eh_proj", z)
        self.keep("mtp.eh_out", x)
        x = self.layer(L, x, pos, kv)
        h = rms_norm(x, self.w[p + "shared_head.norm.weight"], self.eps)
        head = self.w.get(p + "shared_head.head.weight", self.w.get("lm_head.weight", self.w["model.embed_tokens.weight"]))
        self.rec = None
        return h @ head.T, h, x
