#include "runtime/tensor/buffer.h"

#include <atomic>
#include <utility>

#include "runtime/base/os.h"

namespace lockstep {
namespace {

std::atomic<uint64_t> live_bytes{0};

}  // namespace

uint64_t Buffer::LiveBytes() { return live_bytes.load(); }

StatusOr<Buffer> Buffer::Allocate(uint64_t bytes, std::string_view what) {
  Buffer buffer;
  if (bytes == 0) return buffer;
  buffer.data_ = static_cast<std::byte*>(os::AllocatePages(bytes));
  if (buffer.data_ == nullptr) {
    return MakeError(
        ErrorKind::kUsage, absl::StatusCode::kResourceExhausted,
        absl::StrFormat("cannot allocate %d MiB for %s on %s; use more ranks, a shorter "
                        "--max-model-len or fewer --max-num-seqs",
                        bytes >> 20, what, os::HostName()));
  }
  buffer.bytes_ = bytes;
  live_bytes += bytes;
  return buffer;
}

Buffer Buffer::Adopt(std::byte* data, uint64_t bytes, Release release) {
  Buffer buffer;
  buffer.data_ = data;
  buffer.bytes_ = bytes;
  buffer.release_ = release;
  live_bytes += bytes;
  return buffer;
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if (release_ != nullptr) {
    release_(data_, bytes_);
  } else {
    os::FreePages(data_, bytes_);
  }
  live_bytes -= bytes_;
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      release_(std::exchange(other.release_, nullptr)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(release_, other.release_);
  return *this;
}

StatusOr<int64_t> CheckedProduct(int64_t a, int64_t b, const char* what) {
  int64_t product = 0;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &product)) {
    return ModelError("%s: %d x %d is too large", what, a, b);
  }
  return product;
}

}  // namespace lockstep
