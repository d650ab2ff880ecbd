// The step's scratch: sized once at start, handed out in order, never freed one by one.
#pragma once

#include <cstdint>

#include "runtime/base/check.h"
#include "runtime/tensor/buffer.h"

namespace lockstep {

// Measures first (no memory behind it), then serves: run the same sequence of Take calls on a
// measuring arena to learn the size, and on a real one to get the pointers.
class Arena {
 public:
  static Arena Measuring() { return Arena(); }
  explicit Arena(Buffer* storage) : storage_(storage) {}

  // Room for `count` T's, 64-byte aligned, with 64 spare bytes behind it that kernels may read.
  // nullptr when measuring.
  template <typename T>
  T* Take(int64_t count) {
    const uint64_t begin = used_;
    used_ += (static_cast<uint64_t>(count) * sizeof(T) + 64 + 63) / 64 * 64;
    if (storage_ == nullptr) return nullptr;
    LOCKSTEP_CHECK(used_ <= storage_->bytes());
    return reinterpret_cast<T*>(storage_->data() + begin);
  }
  uint64_t used_bytes() const { return used_; }

 private:
  Arena() = default;
  Buffer* storage_ = nullptr;
  uint64_t used_ = 0;
};

}  // namespace lockstep
