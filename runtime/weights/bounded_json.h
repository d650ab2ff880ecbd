// JSON from outside as a tree whose size is bounded: a value takes 16 bytes and more, however short
// its text is.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string_view>

namespace lockstep {

// Configs of real models have some 50,000 values (lists of modules, settings of layers).
inline constexpr size_t kMostJsonValues = size_t{1} << 20;
inline constexpr int kDeepestJson = 16;
// Of a config.json, and of the config inside a file of a rank.
inline constexpr size_t kMostConfigBytes = size_t{16} << 20;

// Discarded (is_discarded()) where the text is no JSON, nests deeper or has more values.
nlohmann::json ParseBoundedJson(std::string_view text, int deepest = kDeepestJson,
                                size_t most_values = kMostJsonValues);

}  // namespace lockstep
