// Which part of a model a tensor belongs to, by its name (weights/checkpoint.h says whose names).
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "runtime/model/config.h"

namespace lockstep {

enum class TensorGroup : uint8_t {
  kEmbedding,
  kAttention,
  kDense,  // feed-forwards of the first layers
  kRouter,
  kExperts,
  kShared,  // shared experts
  kNorms,
  kDraft,  // everything of the layers behind the last one (MTP)
  kHead,
};

inline constexpr char kLayerPrefix[] = "model.layers.";

// 7 of "model.layers.7.mlp.gate.weight"; nothing if the name is not of a layer.
std::optional<int64_t> LayerOf(std::string_view name);

TensorGroup GroupOf(const ModelConfig& config, std::string_view name);

}  // namespace lockstep
