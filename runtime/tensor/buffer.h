// Owning storage: page-aligned, zeroed, on huge pages where the system has them; or memory of a
// device that the host sees too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "runtime/base/status.h"

namespace lockstep {

class Buffer {
 public:
  Buffer() = default;
  // `what` names the owner in the error when memory runs out.
  static StatusOr<Buffer> Allocate(uint64_t bytes, std::string_view what);
  // Memory that was taken elsewhere and is given back by `release`, which gets both again.
  using Release = void (*)(std::byte* data, uint64_t bytes);
  static Buffer Adopt(std::byte* data, uint64_t bytes, Release release);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;

  // Of all buffers that this process holds.
  static uint64_t LiveBytes();

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  uint64_t bytes_ = 0;
  Release release_ = nullptr;  // null: the system's pages
};

// a * b, or an error that names `what` when it does not fit 63 bits or either is negative.
StatusOr<int64_t> CheckedProduct(int64_t a, int64_t b, const char* what);

}  // namespace lockstep
