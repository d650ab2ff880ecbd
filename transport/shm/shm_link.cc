// A link through memory that two processes share: one ring per direction, each with one producer
// and one consumer. The memory has no name in any file system, so nothing is left when a process is
// killed.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <random>

#include "transport/backends.h"
#include "transport/post_queue.h"

namespace lockstep {
namespace {

constexpr size_t kRingBytes = size_t{1} << 20;
// A long message becomes visible in pieces, so that the reader copies while the writer does.
constexpr size_t kPieceBytes = size_t{16} << 10;
// How many polls without progress before the socket is asked whether the peer still lives: asking
// costs a system call, polling an empty ring a cache hit.
constexpr int kPollsPerLivenessCheck = 4096;
constexpr int64_t kLongestNapUs = 500;

// Counters only grow; each line has one writer.
struct Ring {
  alignas(64) std::atomic<uint64_t> written;
  alignas(64) std::atomic<uint64_t> read;
  alignas(64) std::atomic<uint32_t> reader_sleeps;
  alignas(64) std::byte data[kRingBytes];
};
static_assert(std::atomic<uint64_t>::is_always_lock_free &&
              std::atomic<uint32_t>::is_always_lock_free);

struct SharedRings {
  Ring rings[2];  // [0]: from the creator, [1]: to the creator
};

StatusOr<UniqueFd> CreateMemory() {
#ifdef __linux__
  UniqueFd fd(memfd_create("lockstep-link", MFD_CLOEXEC | MFD_ALLOW_SEALING));
#else
  std::random_device random;
  const std::string name = absl::StrFormat("/ls-%08x%08x", random(), random());
  UniqueFd fd(shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600));
  if (fd.valid()) (void)shm_unlink(name.c_str());
#endif
  if (!fd.valid() || ftruncate(fd.get(), sizeof(SharedRings)) != 0) {
    return InternalError("cannot create %d KiB of shared memory: %s", sizeof(SharedRings) >> 10,
                         std::strerror(errno));
  }
#ifdef __linux__
  // Nobody can shrink it under the other side's feet.
  (void)fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
#endif
  return fd;
}

Status SendDescriptor(int socket, int descriptor) {
  char byte = 'm';
  iovec part{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &descriptor, sizeof(int));
  if (sendmsg(socket, &message, SendFlags()) != 1) {
    return PeerLostError("did not take the shared memory: %s", std::strerror(errno));
  }
  return OkStatus();
}

StatusOr<UniqueFd> ReceiveDescriptor(int socket, Deadline deadline) {
  char byte = 0;
  iovec part{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  while (!deadline.Passed()) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    const ssize_t received = recvmsg(socket, &message, ReceiveFlags());
    if (received < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
      (void)WaitForSocket(socket, true, false,
                          std::min<int64_t>(deadline.RemainingMs(), 100) * 1000);
      continue;
    }
    if (received <= 0) return ConnectionClosed();
    const cmsghdr* header = CMSG_FIRSTHDR(&message);
    if (header == nullptr || header->cmsg_type != SCM_RIGHTS ||
        header->cmsg_len != CMSG_LEN(sizeof(int))) {
      return PeerLostError("sent no shared memory");
    }
    int descriptor = -1;
    std::memcpy(&descriptor, CMSG_DATA(header), sizeof(int));
    UniqueFd fd(descriptor);
    struct stat facts {};
    if (fstat(fd.get(), &facts) != 0 || facts.st_size != static_cast<off_t>(sizeof(SharedRings))) {
      return PeerLostError("sent shared memory of a wrong size");
    }
    return fd;
  }
  return PeerLostError("sent no shared memory in time");
}

class ShmLink final : public Link {
 public:
  ShmLink(UniqueFd socket, SharedRings* shared, bool creator)
      : socket_(std::move(socket)),
        shared_(shared),
        out_(&shared->rings[creator ? 0 : 1]),
        in_(&shared->rings[creator ? 1 : 0]) {}
  ~ShmLink() override {
    Close();
    (void)munmap(shared_, sizeof(SharedRings));
  }

  const LinkTraits& traits() const override {
    static constexpr LinkTraits kTraits = {
        .name = "shm", .needs_registered_memory = false, .detects_peer_death = true};
    return kTraits;
  }
  Status Register(std::span<std::byte>) override { return OkStatus(); }
  Status PostSend(std::span<const std::byte> data) override {
    if (!socket_.valid()) return ConnectionClosed();
    sends_.Push(data);
    return OkStatus();
  }
  Status PostReceive(std::span<std::byte> buffer) override {
    if (!socket_.valid()) return ConnectionClosed();
    receives_.Push(buffer);
    return OkStatus();
  }

  StatusOr<LinkProgress> Poll() override {
    if (!socket_.valid()) return ConnectionClosed();
    LOCKSTEP_ASSIGN_OR_RETURN(const bool sent, MoveOut());
    LOCKSTEP_ASSIGN_OR_RETURN(const bool received, MoveIn());
    const bool idle = !sent && !received && !(sends_.empty() && receives_.empty());
    if (!idle) {
      idle_polls_ = 0;
    } else if (++idle_polls_ >= kPollsPerLivenessCheck) {
      idle_polls_ = 0;
      LOCKSTEP_RETURN_IF_ERROR(CheckPeer());
    }
    return LinkProgress{sends_.completed(), receives_.completed()};
  }

  void WaitReadable(int64_t timeout_us) override {
    if (!socket_.valid()) return;
    // A full ring has no wake-up: the reader would pay for it on every message.
    if (!sends_.empty()) timeout_us = std::min(timeout_us, kLongestNapUs);
    in_->reader_sleeps.store(1, std::memory_order_seq_cst);
    if (in_->written.load(std::memory_order_seq_cst) == read_) {
      (void)WaitForSocket(socket_.get(), true, false, timeout_us);
      idle_polls_ =
          kPollsPerLivenessCheck;  // a wake-up or an end stands in the socket: look at once
    }
    in_->reader_sleeps.store(0, std::memory_order_relaxed);
  }

  void Close() override { socket_.Reset(); }

 private:
  StatusOr<bool> MoveOut() {
    bool moved = false;
    while (!sends_.empty()) {
      size_t free_bytes = kRingBytes - static_cast<size_t>(written_ - seen_read_);
      if (free_bytes < std::min(sends_[0].size(), kPieceBytes)) {
        seen_read_ = out_->read.load(std::memory_order_acquire);
        if (written_ - seen_read_ > kRingBytes) return PeerLostError("damaged the shared memory");
        free_bytes = kRingBytes - static_cast<size_t>(written_ - seen_read_);
      }
      size_t piece = 0;
      while (!sends_.empty() && piece < std::min(free_bytes, kPieceBytes)) {
        const size_t place = static_cast<size_t>(written_ + piece) % kRingBytes;
        const std::span<const std::byte> part = sends_[0];
        const size_t bytes =
            std::min({part.size(), kRingBytes - place, std::min(free_bytes, kPieceBytes) - piece});
        std::memcpy(out_->data + place, part.data(), bytes);
        sends_.Advance(bytes);
        piece += bytes;
      }
      if (piece == 0) return moved;
      written_ += piece;
      moved = true;
      // Sequentially consistent, as is the reader's flag: either the reader sees the bytes before
      // it sleeps or this side sees that it sleeps.
      out_->written.store(written_, std::memory_order_seq_cst);
      if (out_->reader_sleeps.load(std::memory_order_seq_cst) != 0) WakeReader();
    }
    return moved;
  }

  StatusOr<bool> MoveIn() {
    bool moved = false;
    while (!receives_.empty()) {
      const uint64_t written = in_->written.load(std::memory_order_acquire);
      if (written - read_ > kRingBytes) return PeerLostError("damaged the shared memory");
      if (written == read_) return moved;
      while (!receives_.empty() && read_ != written) {
        const size_t place = static_cast<size_t>(read_) % kRingBytes;
        const std::span<std::byte> part = receives_[0];
        const size_t bytes =
            std::min({part.size(), kRingBytes - place, static_cast<size_t>(written - read_)});
        std::memcpy(part.data(), in_->data + place, bytes);
        receives_.Advance(bytes);
        read_ += bytes;
      }
      in_->read.store(read_, std::memory_order_release);
      moved = true;
    }
    return moved;
  }

  void WakeReader() {
    if (out_->reader_sleeps.exchange(0, std::memory_order_seq_cst) == 0) return;
    const char byte = 'w';
    (void)send(socket_.get(), &byte, 1,
               SendFlags());  // a full socket wakes as well; a dead peer shows elsewhere
  }

  // Swallows wake-ups; an error when the peer is gone and has left nothing to read.
  Status CheckPeer() {
    std::byte bytes[64];
    while (true) {
      const StatusOr<size_t> received = ReceiveSome(socket_.get(), bytes);
      if (received.ok() && *received == 0) return OkStatus();
      if (received.ok()) continue;
      LOCKSTEP_ASSIGN_OR_RETURN(const bool moved, MoveIn());
      if (moved && receives_.empty() && sends_.empty()) return OkStatus();
      return received.status();
    }
  }

  UniqueFd socket_;
  SharedRings* shared_;
  Ring* out_;
  Ring* in_;
  uint64_t written_ = 0;    // of the outgoing ring; only this side writes it
  uint64_t seen_read_ = 0;  // the peer's counter when last looked at
  uint64_t read_ = 0;       // of the incoming ring
  int idle_polls_ = 0;
  PostQueue<const std::byte> sends_;
  PostQueue<std::byte> receives_;
};

}  // namespace

StatusOr<std::unique_ptr<Link>> MakeShmLink(UniqueFd socket, bool create, Deadline deadline) {
  UniqueFd memory;
  if (create) {
    LOCKSTEP_ASSIGN_OR_RETURN(memory, CreateMemory());
    LOCKSTEP_RETURN_IF_ERROR(SendDescriptor(socket.get(), memory.get()));
  } else {
    LOCKSTEP_ASSIGN_OR_RETURN(memory, ReceiveDescriptor(socket.get(), deadline));
  }
  void* mapped =
      mmap(nullptr, sizeof(SharedRings), PROT_READ | PROT_WRITE, MAP_SHARED, memory.get(), 0);
  if (mapped == MAP_FAILED)
    return InternalError("cannot map shared memory: %s", std::strerror(errno));
  // A fresh mapping is all zeros, which is what both rings start with.
  return std::make_unique<ShmLink>(std::move(socket), static_cast<SharedRings*>(mapped), create);
}

}  // namespace lockstep
