#include "transport/frame.h"

#include <algorithm>

namespace lockstep {
namespace {

std::string Describe(const FrameHeader& header) {
  if (header.kind == FrameKind::kPut) {
    return absl::StrFormat("a put of %d bytes at %d", header.bytes, header.offset);
  }
  return absl::StrFormat("a message of %d bytes", header.bytes);
}

// Appends what is left of a frame of which `moved` bytes are done.
void AddParts(void* header, std::byte* data, size_t bytes, size_t moved, std::span<iovec> parts,
              size_t* count) {
  constexpr size_t kHeader = sizeof(FrameHeader);
  if (moved < kHeader) parts[(*count)++] = {static_cast<char*>(header) + moved, kHeader - moved};
  const size_t done = moved > kHeader ? moved - kHeader : 0;
  if (done < bytes && *count < parts.size()) parts[(*count)++] = {data + done, bytes - done};
}

}  // namespace

Status CheckFrame(const FrameHeader& got, const FrameHeader& expected) {
  if (got.kind == expected.kind && got.offset == expected.offset && got.bytes == expected.bytes) {
    return OkStatus();
  }
  if (got.kind != FrameKind::kPut && got.kind != FrameKind::kMessage) {
    return PeerLostError("sent something that is neither a put nor a message");
  }
  return PeerLostError("sent %s where %s is expected: the ranks are out of step", Describe(got),
                       Describe(expected));
}

size_t FrameSender::Parts(std::span<iovec> parts) {
  size_t count = 0;
  for (size_t i = 0; i < frames_.size() && count < parts.size(); ++i) {
    Frame& frame = frames_[i];
    AddParts(&frame.header, const_cast<std::byte*>(frame.data.data()), frame.data.size(),
             frame.moved, parts, &count);
  }
  return count;
}

void FrameSender::Advance(size_t bytes) {
  while (bytes > 0) {
    Frame& frame = frames_[0];
    const size_t left = sizeof(FrameHeader) + frame.data.size() - frame.moved;
    const size_t taken = std::min(bytes, left);
    frame.moved += taken;
    bytes -= taken;
    if (taken < left) return;
    ++(frame.header.kind == FrameKind::kPut ? puts_ : messages_);
    frames_.Pop();
  }
}

size_t FrameReceiver::Parts(std::span<iovec> parts) {
  size_t count = 0;
  for (size_t i = 0; i < frames_.size() && count < parts.size(); ++i) {
    Frame& frame = frames_[i];
    AddParts(&frame.got, frame.buffer.data(), frame.buffer.size(), frame.moved, parts, &count);
  }
  return count;
}

Status FrameReceiver::Advance(size_t bytes) {
  while (bytes > 0) {
    Frame& frame = frames_[0];
    const bool headless = frame.moved < sizeof(FrameHeader);
    const size_t left = sizeof(FrameHeader) + frame.buffer.size() - frame.moved;
    const size_t taken = std::min(bytes, left);
    frame.moved += taken;
    bytes -= taken;
    if (headless && frame.moved >= sizeof(FrameHeader)) {
      LOCKSTEP_RETURN_IF_ERROR(CheckFrame(frame.got, frame.expected));
    }
    if (taken < left) return OkStatus();
    if (frame.expected.kind == FrameKind::kPut) {
      put_tags_[puts_++ % kPutsAhead] = frame.got.tag;
    } else {
      message_tags_[messages_++ % kPutsAhead] = frame.got.tag;
    }
    frames_.Pop();
  }
  return OkStatus();
}

}  // namespace lockstep
