// How puts and messages travel through a stream of bytes (docs/wire.md): a header, then the bytes,
// then zeros up to a whole number of lines.
//
// Whole lines, because kernels copy with `rep movsb`, which on AMD Zen 3 is 20 times slower when
// the destination stands 1 to 31 bytes behind the source (modulo a page; measured 2026-11-27).
// Windows and socket buffers begin on pages, so a header of 24 bytes would be the worst case in
// every send.
//
// FrameSender and FrameReceiver hold what is still to be moved, oldest first, as parts that one
// system call can gather or scatter; the backend moves them and says how far it came.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/base/status.h"
#include "transport/link.h"

namespace lockstep {

enum class FrameKind : uint32_t { kPut = 1, kMessage = 2 };

inline constexpr size_t kLine = 64;

struct FrameHeader {
  FrameKind kind = FrameKind::kMessage;
  uint32_t tag = 0;
  uint64_t offset = 0;  // of a put, in the window
  uint64_t bytes = 0;   // that follow
  std::byte zeros[40] = {};
};
static_assert(sizeof(FrameHeader) == kLine);

// Ok if `got` announces what is expected, whatever its tag; else a PeerLost error.
Status CheckFrame(const FrameHeader& got, const FrameHeader& expected);

// A queue that keeps its memory.
template <typename T>
class Fifo {
 public:
  void Push(const T& item) {
    if (count_ == items_.size()) Grow();
    items_[Place(count_++)] = item;
  }
  void Pop() {
    first_ = Place(1);
    --count_;
  }
  bool empty() const { return count_ == 0; }
  size_t size() const { return count_; }
  // The i-th oldest.
  T& operator[](size_t i) { return items_[Place(i)]; }
  const T& operator[](size_t i) const { return items_[Place(i)]; }

 private:
  // The size is a power of two.
  size_t Place(size_t i) const { return (first_ + i) & (items_.size() - 1); }
  void Grow() {
    std::vector<T> larger(items_.size() * 2);
    for (size_t i = 0; i < count_; ++i) larger[i] = (*this)[i];
    items_.swap(larger);
    first_ = 0;
  }
  std::vector<T> items_ = std::vector<T>(16);
  size_t first_ = 0;
  size_t count_ = 0;
};

class FrameSender {
 public:
  void Push(const FrameHeader& header, std::span<const std::byte> data) {
    frames_.Push({header, data, 0});
  }
  bool empty() const { return frames_.empty(); }
  // Fills `parts` with what comes next; returns how many were filled.
  size_t Parts(std::span<iovec> parts);
  // That many bytes of them have left.
  void Advance(size_t bytes);
  uint64_t puts() const { return puts_; }
  uint64_t messages() const { return messages_; }

 private:
  struct Frame {
    FrameHeader header;
    std::span<const std::byte> data;
    size_t moved = 0;  // of header and data
  };
  Fifo<Frame> frames_;
  uint64_t puts_ = 0, messages_ = 0;
  std::array<std::byte, kLine> zeros_{};
};

class FrameReceiver {
 public:
  // The tag in `expected` does not matter.
  void Push(const FrameHeader& expected, std::span<std::byte> buffer) {
    frames_.Push({expected, {}, buffer, 0});
  }
  bool empty() const { return frames_.empty(); }
  // Where the next bytes belong; valid until the next Push.
  size_t Parts(std::span<iovec> parts);
  // That many bytes were written there. An error when a header is not the expected one.
  Status Advance(size_t bytes);
  uint64_t puts() const { return puts_; }
  uint64_t messages() const { return messages_; }
  uint32_t put_tag(uint64_t number) const { return put_tags_[number % kPutsAhead]; }
  uint32_t message_tag(uint64_t number) const { return message_tags_[number % kPutsAhead]; }

 private:
  struct Frame {
    FrameHeader expected;
    FrameHeader got;
    std::span<std::byte> buffer;
    size_t moved = 0;
  };
  Fifo<Frame> frames_;
  uint64_t puts_ = 0, messages_ = 0;
  std::array<uint32_t, kPutsAhead> put_tags_{}, message_tags_{};
  std::array<std::byte, kLine> padding_{};  // received and forgotten
};

}  // namespace lockstep
