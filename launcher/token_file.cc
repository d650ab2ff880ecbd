#include "launcher/token_file.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "runtime/base/file.h"

namespace lockstep {
namespace {

constexpr char kForm[] = "it must be JSON of the form [[ids...], ...]";

}  // namespace

StatusOr<std::vector<std::vector<int32_t>>> ReadTokenLists(const std::string& path) {
  const StatusOr<std::string> text = ReadTextFile(path);
  if (!text.ok()) return UsageError("--tokens: %s", MessageOf(text.status()));
  return ParseTokenLists(*text, path);
}

StatusOr<std::vector<std::vector<int32_t>>> ParseTokenLists(const std::string& text,
                                                            const std::string& name) {
  nlohmann::json json;
  try {
    json = nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    return UsageError("%s is not JSON (%s); %s", name, error.what(), kForm);
  }
  if (!json.is_array() || json.empty())
    return UsageError("%s holds no token lists; %s", name, kForm);
  std::vector<std::vector<int32_t>> lists;
  for (const nlohmann::json& entry : json) {
    if (!entry.is_array())
      return UsageError("%s: entry %d is not a list; %s", name, lists.size(), kForm);
    if (entry.empty())
      return UsageError("%s: list %d is empty; every list needs a token", name, lists.size());
    std::vector<int32_t> ids;
    for (const nlohmann::json& id : entry) {
      // Unsigned numbers above the range of int64 count as unsigned and are refused by the
      // comparison.
      const bool whole = id.is_number_integer();
      if (!whole ||
          (id.is_number_unsigned() ? id.get<uint64_t>() > INT32_MAX : id.get<int64_t>() < 0)) {
        return UsageError("%s: list %d, entry %d is no token id; ids are whole numbers from 0 on",
                          name, lists.size(), ids.size());
      }
      ids.push_back(static_cast<int32_t>(id.get<int64_t>()));
    }
    lists.push_back(std::move(ids));
  }
  return lists;
}

Status CheckTokenLists(const std::vector<std::vector<int32_t>>& lists, const std::string& name,
                       const ModelConfig& config, int64_t max_model_len) {
  if (max_model_len > config.max_position_embeddings) {
    return UsageError("--max-model-len is %d, but the model has %d positions", max_model_len,
                      config.max_position_embeddings);
  }
  const int64_t context = max_model_len > 0 ? max_model_len : config.max_position_embeddings;
  for (size_t i = 0; i < lists.size(); ++i) {
    if (static_cast<int64_t>(lists[i].size()) > context) {
      return UsageError("%s: list %d has %d tokens, but the context holds %d", name, i,
                        lists[i].size(), context);
    }
    for (const int32_t id : lists[i]) {
      if (id >= config.vocab_size) {
        return UsageError("%s: list %d has token id %d, but the model's ids are 0 .. %d", name, i,
                          id, config.vocab_size - 1);
      }
    }
  }
  return OkStatus();
}

}  // namespace lockstep
