// Merging of bytes into tokens, lowest rank first.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace lockstep {

// For maps from std::string that are asked with std::string_view.
struct TransparentHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};
template <typename Value>
using StringMap = std::unordered_map<std::string, Value, TransparentHash, std::equal_to<>>;

// Filled once by the loader, then immutable and shared by threads.
class BytePairEncoder {
 public:
  struct Merge {
    int32_t rank;
    int32_t id;  // of the merged token
  };

  BytePairEncoder() { byte_ids_.fill(-1); }

  // A token that merging can produce, by its bytes. False if these bytes were added before.
  bool AddToken(std::string_view bytes, int32_t id);
  void ReserveMerges(size_t count);
  // A pair of tokens; a later one of the same pair replaces the earlier, as in Hugging Face
  // tokenizers.
  void AddMerge(int32_t left, int32_t right, Merge merge);
  // Whether a piece that is a token as a whole is taken at once.
  void set_ignore_merges(bool ignore) { ignore_merges_ = ignore; }

  std::optional<int32_t> IdOfBytes(std::string_view bytes) const;
  // The id of the one-byte token; -1 where there is none.
  int32_t byte_id(unsigned char byte) const { return byte_ids_[byte]; }

  // Appends the ids of one piece, whose bytes must all have tokens. O(n log n).
  void Encode(std::string_view piece, std::vector<int32_t>* ids) const;

 private:
  struct Slot {
    uint64_t pair = kEmpty;
    Merge merge{};
  };
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  static uint64_t PairOf(int32_t left, int32_t right) {
    return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) |
           static_cast<uint32_t>(right);
  }
  size_t SlotOf(uint64_t pair) const;
  const Merge* FindMerge(int32_t left, int32_t right) const;

  bool ignore_merges_ = false;
  StringMap<int32_t> ids_;
  std::array<int32_t, 256> byte_ids_;
  std::vector<Slot> slots_;  // open addressing, at most half full, a power of two
  size_t merges_ = 0;
};

}  // namespace lockstep
