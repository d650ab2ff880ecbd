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

constexpr size_t Padding(size_t bytes) { return (kLine - bytes % kLine) % kLine; }
constexpr size_t FrameBytes(size_t bytes) { return sizeof(FrameHeader) + bytes + Padding(bytes); }

// Appends what is left of a frame of which `moved` bytes are done. `padding` has room for a line.
void AddParts(FrameHeader* header, std::span<std::byte> data, std::byte* padding, size_t moved,
              std::span<iovec> parts, size_t* count) {
  const std::span<std::byte> all[] = {{reinterpret_cast<std::byte*>(header), sizeof(FrameHeader)},
                                      data,
                                      {padding, Padding(data.size())}};
  for (const std::span<std::byte> part : all) {
    const size_t done = std::min(moved, part.size());
    moved -= done;
    if (done == part.size()) continue;
    if (*count == parts.size()) return;
    parts[(*count)++] = {part.data() + done, part.size() - done};
  }
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
    auto* data = const_cast<std::byte*>(frame.data.data());
    AddParts(&frame.header, {data, frame.data.size()}, zeros_.data(), frame.moved, parts, &count);
  }
  return count;
}

void FrameSender::Advance(size_t bytes) {
  while (bytes > 0) {
    Frame& frame = frames_[0];
    const size_t left = FrameBytes(frame.data.size()) - frame.moved;
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
    AddParts(&frame.got, frame.buffer, padding_.data(), frame.moved, parts, &count);
  }
  return count;
}

Status FrameReceiver::Advance(size_t bytes) {
  while (bytes > 0) {
    Frame& frame = frames_[0];
    const bool headless = frame.moved < sizeof(FrameHeader);
    const size_t left = FrameBytes(frame.buffer.size()) - frame.moved;
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
