#include "runtime/model/tensor_groups.h"

#include <charconv>

namespace lockstep {
namespace {

bool Has(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

}  // namespace

std::optional<int64_t> LayerOf(std::string_view name) {
  constexpr std::string_view kPrefix = kLayerPrefix;
  if (!name.starts_with(kPrefix)) return std::nullopt;
  int64_t layer = 0;
  const char* end = name.data() + name.size();
  const auto [rest, error] = std::from_chars(name.data() + kPrefix.size(), end, layer);
  if (error != std::errc() || layer < 0 || rest == end || *rest != '.') return std::nullopt;
  return layer;
}

TensorGroup GroupOf(const ModelConfig& config, std::string_view name) {
  if (LayerOf(name).value_or(-1) >= config.num_hidden_layers) return TensorGroup::kDraft;
  if (Has(name, "embed_tokens.")) return TensorGroup::kEmbedding;
  if (Has(name, "lm_head.")) return TensorGroup::kHead;
  if (Has(name, "norm")) return TensorGroup::kNorms;
  if (Has(name, "self_attn.")) return TensorGroup::kAttention;
  if (Has(name, "mlp.experts.")) return TensorGroup::kExperts;
  if (Has(name, "mlp.shared_experts.")) return TensorGroup::kShared;
  if (Has(name, "mlp.gate.")) return TensorGroup::kRouter;
  return TensorGroup::kDense;
}

}  // namespace lockstep
