// The allocator of KV blocks. Only rank 0 has one; block ids travel in the plan, so that all ranks
// use the same pages.
#pragma once

#include <cstdint>
#include <vector>

namespace lockstep {

// Hands out block ids [0, blocks). A pure state machine: the same calls give the same ids. Not
// thread-safe.
//
// Admission reserves before it allocates: a sequence that was let in can always grow to what it
// reserved, so nothing runs out of memory after it was accepted.
class BlockPool {
 public:
  explicit BlockPool(int64_t blocks);

  int64_t total() const { return total_; }
  int64_t used() const { return total_ - static_cast<int64_t>(free_.size()); }
  // Blocks that are neither used nor promised.
  int64_t available() const { return static_cast<int64_t>(free_.size()) - reserved_; }

  // Promises `count` blocks; false (and nothing changes) if fewer are available.
  bool Reserve(int64_t count);
  // Takes back a promise of `count` blocks that were not taken.
  void Unreserve(int64_t count);
  // Takes one promised block.
  int32_t Take();
  // Gives blocks back. Each must be in use.
  void Release(const std::vector<int32_t>& blocks);

 private:
  int64_t total_;
  int64_t reserved_ = 0;
  std::vector<int32_t> free_;  // a stack, lowest id on top at the start
  std::vector<bool> in_use_;
};

}  // namespace lockstep
