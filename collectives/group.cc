#include "collectives/group.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "collectives/choose.h"

namespace lockstep {
namespace {

Status WrongSize(const char* what, size_t got, size_t expected) {
  return InternalError("%s: a buffer of %d bytes where %d are needed", what, got, expected);
}

// The first part of a message whose length only the root knows: the length and as much as fits, so
// that a short message (a step's plan) is one message on the wire.
constexpr size_t kFirstPartBytes = 1024;
constexpr size_t kFirstPayloadBytes = kFirstPartBytes - sizeof(uint64_t);

}  // namespace

Group::Group(int rank, int size) : rank_(rank), size_(size), sum_limits_(UsualSumLimits(size)) {
  std::vector<int> alone(static_cast<size_t>(size));
  std::iota(alone.begin(), alone.end(), 0);
  set_machines(alone);
}

Status Group::Publish() {
  const SlotPart whole{0, slot_.size()};
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    LOCKSTEP_RETURN_IF_ERROR(ExpectPart(peer, whole));
    LOCKSTEP_RETURN_IF_ERROR(PublishPart(peer, whole));
  }
  return OkStatus();
}

Status AllGather(Group& group, std::span<const std::byte> mine, std::span<std::byte> all) {
  const size_t total = mine.size();
  if (total != 0 && all.size() / total != static_cast<size_t>(group.size())) {
    return WrongSize("all-gather", all.size(), total * static_cast<size_t>(group.size()));
  }
  size_t offset = 0;
  do {
    const size_t count = std::min(total - offset, group.traits().slot_bytes);
    LOCKSTEP_ASSIGN_OR_RETURN(const std::span<std::byte> slot, group.Begin(count));
    if (count > 0) std::memcpy(slot.data(), mine.data() + offset, count);
    LOCKSTEP_RETURN_IF_ERROR(group.Publish());
    for (int peer = 0; peer < group.size(); ++peer) {
      LOCKSTEP_ASSIGN_OR_RETURN(const std::span<const std::byte> part, group.Wait(peer));
      if (count > 0) {
        std::memcpy(all.data() + static_cast<size_t>(peer) * total + offset, part.data(), count);
      }
    }
    LOCKSTEP_RETURN_IF_ERROR(group.End());
    offset += count;
  } while (offset < total);
  return OkStatus();
}

Status Broadcast(Group& group, std::span<std::byte> data, int root, Patience patience) {
  if (group.rank() != root) return group.Receive(root, data, patience);
  for (int peer = 0; peer < group.size(); ++peer) {
    if (peer != root) LOCKSTEP_RETURN_IF_ERROR(group.Send(peer, data));
  }
  return OkStatus();
}

Status BroadcastMessage(Group& group, std::vector<std::byte>* message, int root, Patience patience,
                        size_t limit_bytes) {
  std::byte first[kFirstPartBytes] = {};
  uint64_t length = message->size();
  const bool sends = group.rank() == root;
  if (sends) {
    if (length > limit_bytes) {
      return InternalError("a message of %d bytes is over the limit of %d", length, limit_bytes);
    }
    std::memcpy(first, &length, sizeof(length));
    if (length > 0) {
      std::memcpy(first + sizeof(length), message->data(),
                  std::min<size_t>(length, kFirstPayloadBytes));
    }
  }
  LOCKSTEP_RETURN_IF_ERROR(Broadcast(group, first, root, patience));
  if (!sends) {
    std::memcpy(&length, first, sizeof(length));
    if (length > limit_bytes) {
      return PeerLostError("rank %d announced a message of %d bytes, over the limit of %d", root,
                           length, limit_bytes);
    }
    message->resize(length);
    if (length > 0) {
      std::memcpy(message->data(), first + sizeof(length),
                  std::min<size_t>(length, kFirstPayloadBytes));
    }
  }
  if (length <= kFirstPayloadBytes) return OkStatus();
  return Broadcast(group, std::span(*message).subspan(kFirstPayloadBytes), root);
}

Status AllToAll(Group& group, std::span<const std::span<const std::byte>> sends,
                std::span<const std::span<std::byte>> receives, Patience patience) {
  const size_t size = static_cast<size_t>(group.size());
  if (sends.size() != size) return WrongSize("all-to-all sends", sends.size(), size);
  if (receives.size() != size) return WrongSize("all-to-all receives", receives.size(), size);
  const size_t me = static_cast<size_t>(group.rank());
  if (sends[me].size() != receives[me].size()) {
    return WrongSize("all-to-all own part", receives[me].size(), sends[me].size());
  }
  if (!sends[me].empty()) std::memcpy(receives[me].data(), sends[me].data(), sends[me].size());
  for (size_t step = 1; step < size; ++step) {
    const size_t to = (me + step) % size;
    const size_t from = (me + size - step) % size;
    LOCKSTEP_RETURN_IF_ERROR(group.SendReceive(static_cast<int>(to), sends[to],
                                               static_cast<int>(from), receives[from], patience));
  }
  return OkStatus();
}

Status Barrier(Group& group) {
  LOCKSTEP_RETURN_IF_ERROR(group.Begin(0).status());
  LOCKSTEP_RETURN_IF_ERROR(group.Publish());
  for (int peer = 0; peer < group.size(); ++peer)
    LOCKSTEP_RETURN_IF_ERROR(group.Wait(peer).status());
  return group.End();
}

}  // namespace lockstep
