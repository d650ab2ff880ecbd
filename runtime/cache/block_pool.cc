#include "runtime/cache/block_pool.h"

#include "runtime/base/check.h"

namespace lockstep {

BlockPool::BlockPool(int64_t blocks) : total_(blocks), in_use_(blocks, false) {
  LOCKSTEP_CHECK(blocks >= 0 && blocks <= INT32_MAX);
  free_.reserve(blocks);
  for (int64_t id = blocks - 1; id >= 0; --id) free_.push_back(static_cast<int32_t>(id));
}

bool BlockPool::Reserve(int64_t count) {
  LOCKSTEP_CHECK(count >= 0);
  if (count > available()) return false;
  reserved_ += count;
  return true;
}

void BlockPool::Unreserve(int64_t count) {
  LOCKSTEP_CHECK(count >= 0 && count <= reserved_);
  reserved_ -= count;
}

int32_t BlockPool::Take() {
  LOCKSTEP_CHECK(reserved_ > 0 && !free_.empty());
  --reserved_;
  const int32_t id = free_.back();
  free_.pop_back();
  in_use_[id] = true;
  return id;
}

void BlockPool::Release(const std::vector<int32_t>& blocks) {
  for (const int32_t id : blocks) {
    LOCKSTEP_CHECK(id >= 0 && id < total_ && in_use_[id]);
    in_use_[id] = false;
    free_.push_back(id);
  }
}

}  // namespace lockstep
