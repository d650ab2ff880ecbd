#include "runtime/cache/block_pool.h"

#include <algorithm>
#include <span>

#include "runtime/base/check.h"
#include "runtime/base/digest.h"

namespace lockstep {

BlockPool::BlockPool(int64_t blocks) : total_(blocks), blocks_(blocks) {
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
  LOCKSTEP_CHECK(reserved_ > 0 && free_count() > 0);
  --reserved_;
  if (free_.empty()) Forget(idle_.front());
  const int32_t id = free_.back();
  free_.pop_back();
  blocks_[id].taken = true;
  return id;
}

void BlockPool::Release(int32_t block) {
  LOCKSTEP_CHECK(block >= 0 && block < total_ && blocks_[block].taken && !blocks_[block].published);
  blocks_[block].taken = false;
  free_.push_back(block);
}

// An idle block is free again.
void BlockPool::Forget(int32_t block) {
  Block& old = blocks_[block];
  LOCKSTEP_CHECK(old.published && old.holders == 0 && old.children == 0);
  if (old.key.before >= 0) --blocks_[old.key.before].children;
  published_.erase(old.key);
  idle_.erase(old.idle);
  old.published = old.taken = false;
  free_.push_back(block);
}

size_t BlockPool::KeyHash::operator()(const Key& key) const {
  return Digest64(std::as_bytes(std::span(&key, 1)));
}

int32_t BlockPool::Find(int32_t before, const BlockTokens& tokens) const {
  const auto found = published_.find({before, tokens});
  return found == published_.end() ? -1 : found->second;
}

void BlockPool::Hold(int32_t block) {
  LOCKSTEP_CHECK(block >= 0 && block < total_ && blocks_[block].published);
  if (blocks_[block].holders++ == 0) idle_.erase(blocks_[block].idle);
}

void BlockPool::Drop(int32_t block) {
  LOCKSTEP_CHECK(block >= 0 && block < total_ && blocks_[block].holders > 0);
  if (--blocks_[block].holders == 0) blocks_[block].idle = idle_.insert(idle_.end(), block);
}

int32_t BlockPool::Publish(int32_t before, const BlockTokens& tokens, int32_t block) {
  LOCKSTEP_CHECK(block >= 0 && block < total_ && blocks_[block].taken && !blocks_[block].published);
  LOCKSTEP_CHECK(before < 0 || blocks_[before].holders > 0);
  const auto [place, is_new] = published_.try_emplace({before, tokens}, block);
  if (!is_new) {
    if (blocks_[place->second].holders == 0 && available() <= 0) return -1;
    Hold(place->second);
    return place->second;
  }
  Block& mine = blocks_[block];
  mine.published = true;
  mine.holders = 1;
  mine.children = 0;
  mine.key = place->first;
  if (before >= 0) ++blocks_[before].children;
  return block;
}

// Of a chain the last block is dropped first, so that the idle ones, backwards, have each block
// behind those before it.
std::vector<ChainedBlock> BlockPool::Idle(int64_t most, std::vector<int32_t>* ids) const {
  std::vector<ChainedBlock> list;
  ids->clear();
  std::unordered_map<int32_t, int32_t> places = {{-1, -1}};
  for (auto block = idle_.rbegin(); block != idle_.rend(); ++block) {
    if (static_cast<int64_t>(list.size()) >= most) break;
    const Key& key = blocks_[*block].key;
    const auto before = places.find(key.before);
    if (before == places.end()) continue;
    places[*block] = static_cast<int32_t>(list.size());
    list.push_back({before->second, key.tokens});
    ids->push_back(*block);
  }
  return list;
}

void BlockPool::Restore(std::span<const ChainedBlock> blocks) {
  LOCKSTEP_CHECK(static_cast<int64_t>(free_.size()) == total_);
  const auto count = std::min(blocks.size(), free_.size());
  free_.resize(free_.size() - count);
  for (size_t i = 0; i < count; ++i) {
    const auto id = static_cast<int32_t>(i);
    const ChainedBlock& from = blocks[i];
    LOCKSTEP_CHECK(from.before >= -1 && from.before < id);
    Block& block = blocks_[i];
    block.taken = block.published = true;
    block.key = {from.before, from.tokens};
    LOCKSTEP_CHECK(published_.emplace(block.key, id).second);
    if (from.before >= 0) ++blocks_[from.before].children;
    block.idle = idle_.insert(idle_.begin(), id);
  }
}

}  // namespace lockstep
