#include "runtime/text/bpe.h"

#include <functional>
#include <queue>
#include <utility>

#include "runtime/base/check.h"

namespace lockstep {
namespace {

// Positions are 32 bits. A longer piece is cut there, which no real text reaches.
constexpr size_t kLongestPiece = size_t{1} << 30;

struct Symbol {
  int32_t id;
  int32_t previous, next;  // positions; -1 at the ends
  bool alive;
};

// Two neighbours that may be merged, as (rank, position of the left one), so that the smallest
// number is the lowest rank and there the leftmost. Stale ones stay in the queue and are recognised
// when they come up, because the pair that then stands there has another rank.
using Candidate = uint64_t;
Candidate MakeCandidate(int32_t rank, int32_t position) {
  return (static_cast<uint64_t>(static_cast<uint32_t>(rank)) << 32) |
         static_cast<uint32_t>(position);
}

}  // namespace

bool BytePairEncoder::AddToken(std::string_view bytes, int32_t id) {
  if (!ids_.emplace(std::string(bytes), id).second) return false;
  if (bytes.size() == 1) byte_ids_[static_cast<unsigned char>(bytes[0])] = id;
  return true;
}

void BytePairEncoder::ReserveMerges(size_t count) {
  LOCKSTEP_CHECK(slots_.empty());
  size_t size = 16;
  while (size < 2 * count + 2) size *= 2;
  slots_.resize(size);
}

size_t BytePairEncoder::SlotOf(uint64_t pair) const {
  const size_t mask = slots_.size() - 1;
  size_t at = static_cast<size_t>((pair * 0x9E3779B97F4A7C15u) >> 20) & mask;
  while (slots_[at].pair != kEmpty && slots_[at].pair != pair) at = (at + 1) & mask;
  return at;
}

void BytePairEncoder::AddMerge(int32_t left, int32_t right, Merge merge) {
  Slot& slot = slots_[SlotOf(PairOf(left, right))];
  if (slot.pair == kEmpty) {
    LOCKSTEP_CHECK(2 * ++merges_ < slots_.size());
    slot.pair = PairOf(left, right);
  }
  slot.merge = merge;
}

const BytePairEncoder::Merge* BytePairEncoder::FindMerge(int32_t left, int32_t right) const {
  const Slot& slot = slots_[SlotOf(PairOf(left, right))];
  return slot.pair == kEmpty ? nullptr : &slot.merge;
}

std::optional<int32_t> BytePairEncoder::IdOfBytes(std::string_view bytes) const {
  const auto found = ids_.find(bytes);
  if (found == ids_.end()) return std::nullopt;
  return found->second;
}

void BytePairEncoder::Encode(std::string_view piece, std::vector<int32_t>* ids) const {
  if (piece.empty()) return;
  if (ignore_merges_ || piece.size() == 1) {
    if (const std::optional<int32_t> whole = IdOfBytes(piece)) {
      ids->push_back(*whole);
      return;
    }
  }
  if (piece.size() > kLongestPiece) {
    Encode(piece.substr(0, kLongestPiece), ids);
    return Encode(piece.substr(kLongestPiece), ids);
  }
  const int32_t count = static_cast<int32_t>(piece.size());
  std::vector<Symbol> symbols(piece.size());
  std::vector<Candidate> first;
  first.reserve(piece.size());
  for (int32_t i = 0; i < count; ++i) {
    symbols[i] = {byte_ids_[static_cast<unsigned char>(piece[i])], i - 1,
                  i + 1 < count ? i + 1 : -1, true};
  }
  for (int32_t i = 0; i + 1 < count; ++i) {
    const Merge* merge = FindMerge(symbols[i].id, symbols[i + 1].id);
    if (merge != nullptr) first.push_back(MakeCandidate(merge->rank, i));
  }
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue(std::greater<>(),
                                                                               std::move(first));
  const auto offer = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0) return;
    const Merge* merge = FindMerge(symbols[left].id, symbols[right].id);
    if (merge != nullptr) queue.push(MakeCandidate(merge->rank, left));
  };
  while (!queue.empty()) {
    const int32_t rank = static_cast<int32_t>(queue.top() >> 32);
    const int32_t position = static_cast<int32_t>(queue.top() & 0xFFFFFFFF);
    queue.pop();
    Symbol& left = symbols[position];
    if (!left.alive || left.next < 0) continue;
    Symbol& right = symbols[left.next];
    const Merge* merge = FindMerge(left.id, right.id);
    if (merge == nullptr || merge->rank != rank) continue;
    left.id = merge->id;
    right.alive = false;
    left.next = right.next;
    if (left.next >= 0) symbols[left.next].previous = position;
    offer(left.previous, position);
    offer(position, left.next);
  }
  for (int32_t i = 0; i >= 0; i = symbols[i].next) ids->push_back(symbols[i].id);
}

}  // namespace lockstep
