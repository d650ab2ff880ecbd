// Finding added tokens (<|user|>, <think>...) in text: the leftmost one first, the longest there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace lockstep {

// A trie of byte strings. Filled once, then immutable and shared by threads.
class AddedTokenTrie {
 public:
  struct Match {
    size_t start = 0;
    size_t length = 0;  // 0: none was found
    int32_t id = -1;
  };

  AddedTokenTrie() : first_byte_(256, false), ids_(1, -1) {}
  // `content` is not empty and was not added before.
  void Add(std::string_view content, int32_t id);
  bool empty() const { return ids_.size() == 1; }
  // The first match at or after `from`. O(distance x longest token).
  Match Find(std::string_view text, size_t from) const;

 private:
  std::vector<bool> first_byte_;
  std::vector<int32_t> ids_;                        // per node; -1: no token ends here
  std::unordered_map<uint64_t, int32_t> children_;  // node * 256 + byte -> node
};

}  // namespace lockstep
