// The posts of one direction of a link, oldest first: what a stream backend still has to move.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace lockstep {

template <typename Byte>  // std::byte for receives, const std::byte for sends
class PostQueue {
 public:
  void Push(std::span<Byte> data) {
    if (count_ == parts_.size()) Grow();
    parts_[(first_ + count_) % parts_.size()] = data;
    ++count_;
    Settle();
  }
  // No bytes are waiting.
  bool empty() const { return count_ == 0; }
  size_t size() const { return count_; }
  // What is left of the i-th waiting post.
  std::span<Byte> operator[](size_t i) const { return parts_[(first_ + i) % parts_.size()]; }
  // Takes `bytes` off the front.
  void Advance(size_t bytes) {
    while (bytes > 0) {
      std::span<Byte>& front = parts_[first_];
      const size_t taken = bytes < front.size() ? bytes : front.size();
      front = front.subspan(taken);
      bytes -= taken;
      Settle();
    }
  }
  // Posts moved completely so far.
  uint64_t completed() const { return completed_; }

 private:
  // Posts without bytes left are complete, which includes those that never had any.
  void Settle() {
    while (count_ > 0 && parts_[first_].empty()) {
      first_ = (first_ + 1) % parts_.size();
      --count_;
      ++completed_;
    }
  }
  void Grow() {
    std::vector<std::span<Byte>> larger(parts_.size() * 2);
    for (size_t i = 0; i < count_; ++i) larger[i] = (*this)[i];
    parts_.swap(larger);
    first_ = 0;
  }

  std::vector<std::span<Byte>> parts_ = std::vector<std::span<Byte>>(16);
  size_t first_ = 0;
  size_t count_ = 0;
  uint64_t completed_ = 0;
};

}  // namespace lockstep
