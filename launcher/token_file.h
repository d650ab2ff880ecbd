// The input of `lockstep logits`: a JSON file [[ids...], ...].
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/model/config.h"

namespace lockstep {

// Reads the lists; a UsageError names the file and what is wrong with it (no JSON, no lists, an
// empty list, something that is no token id).
StatusOr<std::vector<std::vector<int32_t>>> ReadTokenLists(const std::string& path);
StatusOr<std::vector<std::vector<int32_t>>> ParseTokenLists(const std::string& text,
                                                            const std::string& name);

// Compares them with the model: ids below vocab_size, lists within the context (`max_model_len` if
// not 0, else the model's own positions).
Status CheckTokenLists(const std::vector<std::vector<int32_t>>& lists, const std::string& name,
                       const ModelConfig& config, int64_t max_model_len);

}  // namespace lockstep
