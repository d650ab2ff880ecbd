// The allocator of KV blocks, and what the blocks hold. Only rank 0 has one; block ids travel in
// the plan, so that all ranks use the same pages.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <list>
#include <span>
#include <unordered_map>
#include <vector>

namespace lockstep {

// The tokens of a full block.
using BlockTokens = std::array<int32_t, 16>;

// A published block in a list of them: its tokens stand behind those of the block at `before` of
// that list, an earlier one, or at the beginning (-1).
struct ChainedBlock {
  int32_t before = -1;
  BlockTokens tokens{};
  bool operator==(const ChainedBlock&) const = default;
};

// Hands out block ids [0, blocks). A pure state machine: the same calls give the same ids. Not
// thread-safe.
//
// Admission reserves before it allocates: a sequence that was let in can always grow to what it
// reserved, so nothing runs out of memory after it was accepted.
//
// A block whose 16 tokens have been computed can be published: whoever begins with the same tokens
// finds it by them and by the published block before it, and shares it. Tokens are compared, not
// digests of them. A published block that nobody holds stays until its room is wanted; the one that
// was held longest ago goes first. Whoever holds a block holds all before it, so none goes before
// those behind it.
class BlockPool {
 public:
  explicit BlockPool(int64_t blocks);

  int64_t total() const { return total_; }
  // Blocks that somebody holds.
  int64_t used() const { return total_ - free_count(); }
  // Blocks that are neither held nor promised.
  int64_t available() const { return free_count() - reserved_; }

  // Promises `count` blocks; false (and nothing changes) if fewer are available.
  bool Reserve(int64_t count);
  // Takes back a promise of `count` blocks that were not taken.
  void Unreserve(int64_t count);
  // How many hold a published block.
  int64_t holders(int32_t block) const { return blocks_[block].holders; }
  // Takes one promised block.
  int32_t Take();
  // Gives back a block that was taken and not published.
  void Release(int32_t block);

  // The published block with these tokens behind `before` (-1: at the beginning); -1: none.
  int32_t Find(int32_t before, const BlockTokens& tokens) const;
  // One more holder of a published block.
  void Hold(int32_t block);
  // One less. Of a chain the last block first.
  void Drop(int32_t block);
  // Publishes `block`, which was taken and has these tokens behind `before`, a block that the
  // caller holds (or -1). Returns the block that the caller holds from now on in its place: itself,
  // or one that was published before with the same tokens; `block` then stays the caller's own. -1,
  // and nothing changes, where that one's room is promised to others: perhaps later.
  int32_t Publish(int32_t before, const BlockTokens& tokens, int32_t block);

  // The published blocks that nobody holds and whose chains nobody holds either, at most `most` of
  // them, those that were held last first; `ids` becomes theirs. Every beginning of the list is one
  // itself: a block stands behind those before it.
  std::vector<ChainedBlock> Idle(int64_t most, std::vector<int32_t>* ids) const;
  // Publishes the first `total()` blocks of such a list under the ids 0, 1, ...; nobody holds them,
  // and they go as they would have gone there. Nothing was taken before.
  void Restore(std::span<const ChainedBlock> blocks);

 private:
  struct Key {
    int32_t before;
    BlockTokens tokens;
    bool operator==(const Key&) const = default;
  };
  struct KeyHash {
    size_t operator()(const Key& key) const;
  };
  struct Block {
    bool taken = false;  // by somebody for writing, or published
    bool published = false;
    int64_t holders = 0;
    int64_t children = 0;  // published blocks behind it
    Key key;
    std::list<int32_t>::iterator idle;  // its place among the idle, if published and not held
  };
  int64_t free_count() const { return static_cast<int64_t>(free_.size() + idle_.size()); }
  void Forget(int32_t block);

  int64_t total_;
  int64_t reserved_ = 0;
  std::vector<int32_t> free_;  // a stack, lowest id on top at the start
  std::list<int32_t> idle_;    // published and not held; held longest ago first
  std::vector<Block> blocks_;
  std::unordered_map<Key, int32_t, KeyHash> published_;
};

}  // namespace lockstep
