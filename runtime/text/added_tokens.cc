#include "runtime/text/added_tokens.h"

namespace lockstep {

void AddedTokenTrie::Add(std::string_view content, int32_t id) {
  first_byte_[static_cast<unsigned char>(content[0])] = true;
  uint64_t node = 0;
  for (char c : content) {
    const uint64_t edge = node * 256 + static_cast<unsigned char>(c);
    const auto [child, added] = children_.emplace(edge, static_cast<int32_t>(ids_.size()));
    if (added) ids_.push_back(-1);
    node = static_cast<uint64_t>(child->second);
  }
  ids_[node] = id;
}

AddedTokenTrie::Match AddedTokenTrie::Find(std::string_view text, size_t from) const {
  for (size_t start = from; start < text.size(); ++start) {
    if (!first_byte_[static_cast<unsigned char>(text[start])]) continue;
    Match best;
    uint64_t node = 0;
    for (size_t at = start; at < text.size(); ++at) {
      const auto child = children_.find(node * 256 + static_cast<unsigned char>(text[at]));
      if (child == children_.end()) break;
      node = static_cast<uint64_t>(child->second);
      if (ids_[node] >= 0) best = {start, at + 1 - start, ids_[node]};
    }
    if (best.length > 0) return best;
  }
  return {};
}

}  // namespace lockstep
