#include "runtime/weights/gguf_names.h"

#include <charconv>
#include <string_view>

namespace lockstep {
namespace {

enum Where : unsigned { kGlm = 1, kLite = 2, kBoth = 3 };

struct Entry {
  std::string_view gguf;
  std::string_view hugging_face;  // '#': the index in a stack
  unsigned where = kBoth;
};

constexpr Entry kTop[] = {
    {"token_embd.weight", "model.embed_tokens.weight"},
    {"output_norm.weight", "model.norm.weight"},
    {"output.weight", "lm_head.weight"},
};

// Below "blk.N." and "model.layers.N.".
constexpr Entry kLayer[] = {
    {"attn_norm.weight", "input_layernorm.weight"},
    {"post_attention_norm.weight", "post_attention_layernorm.weight", kGlm},
    {"ffn_norm.weight", "post_attention_layernorm.weight", kLite},
    {"attn_q.weight", "self_attn.q_proj.weight", kGlm},
    {"attn_q.bias", "self_attn.q_proj.bias", kGlm},
    {"attn_k.weight", "self_attn.k_proj.weight", kGlm},
    {"attn_k.bias", "self_attn.k_proj.bias", kGlm},
    {"attn_v.weight", "self_attn.v_proj.weight", kGlm},
    {"attn_v.bias", "self_attn.v_proj.bias", kGlm},
    {"attn_q_norm.weight", "self_attn.q_norm.weight", kGlm},
    {"attn_k_norm.weight", "self_attn.k_norm.weight", kGlm},
    {"attn_q_a.weight", "self_attn.q_a_proj.weight", kLite},
    {"attn_q_a_norm.weight", "self_attn.q_a_layernorm.weight", kLite},
    {"attn_q_b.weight", "self_attn.q_b_proj.weight", kLite},
    {"attn_kv_a_mqa.weight", "self_attn.kv_a_proj_with_mqa.weight", kLite},
    {"attn_kv_a_norm.weight", "self_attn.kv_a_layernorm.weight", kLite},
    {"attn_kv_b.weight", "self_attn.kv_b_proj.weight", kLite},
    {"attn_k_b.weight", "self_attn.k_b_proj.#.weight", kLite},
    {"attn_v_b.weight", "self_attn.v_b_proj.#.weight", kLite},
    {"attn_output.weight", "self_attn.o_proj.weight"},
    {"ffn_gate.weight", "mlp.gate_proj.weight"},
    {"ffn_up.weight", "mlp.up_proj.weight"},
    {"ffn_down.weight", "mlp.down_proj.weight"},
    {"ffn_gate_inp.weight", "mlp.gate.weight"},
    {"exp_probs_b.bias", "mlp.gate.e_score_correction_bias"},
    {"ffn_gate_exps.weight", "mlp.experts.#.gate_proj.weight"},
    {"ffn_up_exps.weight", "mlp.experts.#.up_proj.weight"},
    {"ffn_down_exps.weight", "mlp.experts.#.down_proj.weight"},
    {"ffn_gate_shexp.weight", "mlp.shared_experts.gate_proj.weight"},
    {"ffn_up_shexp.weight", "mlp.shared_experts.up_proj.weight"},
    {"ffn_down_shexp.weight", "mlp.shared_experts.down_proj.weight"},
    {"nextn.eh_proj.weight", "eh_proj.weight"},
    {"nextn.enorm.weight", "enorm.weight"},
    {"nextn.hnorm.weight", "hnorm.weight"},
    {"nextn.shared_head_norm.weight", "shared_head.norm.weight"},
    {"nextn.embed_tokens.weight", "embed_tokens.weight"},
    {"nextn.shared_head_head.weight", "shared_head.head.weight"},
};

}  // namespace

StatusOr<GgufArchitecture> GgufArchitectureOf(const Gguf& gguf, const std::string& path) {
  const std::string* name = gguf.Text("general.architecture");
  if (name != nullptr && *name == "glm4moe") return GgufArchitecture::kGlm4Moe;
  if (name != nullptr && *name == "deepseek2") return GgufArchitecture::kDeepseek2;
  return ModelError(
      "%s: general.architecture %s is not supported; this build reads glm4moe (GLM-4.5, 4.5-Air, "
      "4.6, 4.7) and deepseek2 as GLM-4.7-Flash has it",
      path, name == nullptr ? "(absent)" : "'" + *name + "'");
}

int64_t GgufLayerOf(const std::string& name, std::string* rest) {
  if (!name.starts_with("blk.")) return -1;
  int64_t layer = -1;
  const char* begin = name.data() + 4;
  const char* end = name.data() + name.size();
  const auto [dot, error] = std::from_chars(begin, end, layer);
  // "blk.01." would be a second name of layer 1.
  const bool canonical = dot == begin + 1 || *begin != '0';
  if (error != std::errc() || dot == end || *dot != '.' || layer < 0 || !canonical) return -1;
  *rest = std::string(dot + 1, end);
  return layer;
}

bool TranslateGgufName(GgufArchitecture architecture, const std::string& name, GgufName* out) {
  for (const Entry& entry : kTop) {
    if (name == entry.gguf) {
      *out = {std::string(entry.hugging_face), "", false};
      return true;
    }
  }
  std::string rest;
  const int64_t layer = GgufLayerOf(name, &rest);
  if (layer < 0) return false;
  const unsigned where = architecture == GgufArchitecture::kGlm4Moe ? kGlm : kLite;
  for (const Entry& entry : kLayer) {
    if (rest != entry.gguf || (entry.where & where) == 0) continue;
    const std::string prefix = absl::StrFormat("model.layers.%d.", layer);
    const size_t mark = entry.hugging_face.find('#');
    out->stack = mark != std::string_view::npos;
    out->before = prefix + std::string(entry.hugging_face.substr(0, mark));
    out->after = out->stack ? std::string(entry.hugging_face.substr(mark + 1)) : "";
    return true;
  }
  return false;
}

}  // namespace lockstep
