// A link through memory that two processes share. Messages go through rings, one per direction. A
// put moves nothing at all: the peer maps this side's window and reads it where it is; the put
// itself is one line of memory that says so. The memory has no name in any file system, so nothing
// is left when a process is killed.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "runtime/base/check.h"
#include "runtime/base/os.h"
#include "transport/backends.h"
#include "transport/frame.h"

namespace lockstep {
namespace {

constexpr size_t kRingBytes = size_t{1} << 20;
// A long message becomes visible in pieces, so that the reader copies while the writer does.
constexpr size_t kPieceBytes = size_t{16} << 10;
constexpr size_t kPartsPerPiece = 16;
// How many polls without progress before the socket is asked whether the peer still lives: asking
// costs a system call, polling an empty ring a cache hit.
constexpr int kPollsPerLivenessCheck = 4096;
constexpr int64_t kLongestNapUs = 500;

// A put: its number is stored last, so a reader that sees it sees the rest and the bytes in the
// window. Two cache lines, because processors fetch lines in pairs and the next one is being
// written.
struct alignas(128) PutLine {
  std::atomic<uint64_t> number;  // from 1; 0: none yet
  uint64_t offset;
  uint64_t bytes;
  uint32_t tag;
};

// One direction. Counters only grow; each line has one writer.
struct Channel {
  PutLine puts[kPutsAhead];  // number n stands at n % kPutsAhead
  alignas(128) std::atomic<uint64_t> written;
  alignas(128) std::atomic<uint64_t> read;
  alignas(128) std::atomic<uint32_t> reader_sleeps;
  alignas(128) std::byte data[kRingBytes];
};
static_assert(std::atomic<uint64_t>::is_always_lock_free &&
              std::atomic<uint32_t>::is_always_lock_free);

struct Shared {
  Channel channels[2];  // [0]: from the creator, [1]: to the creator
};

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
    return UniqueFd(descriptor);
  }
  return PeerLostError("sent no shared memory in time");
}

class ShmLink final : public Link {
 public:
  ShmLink(UniqueFd socket, Shared* shared, bool creator, size_t window_bytes, Window view)
      : socket_(std::move(socket)),
        shared_(shared),
        out_(&shared->channels[creator ? 0 : 1]),
        in_(&shared->channels[creator ? 1 : 0]),
        window_bytes_(window_bytes),
        view_(std::move(view)) {}
  ~ShmLink() override {
    Close();
    os::FreePages(shared_, sizeof(Shared));
  }

  const LinkTraits& traits() const override {
    static constexpr LinkTraits kTraits = {
        .name = "shm", .detects_peer_death = true, .put_copies = false, .puts_need_polls = false};
    return kTraits;
  }

  std::span<const std::byte> view() const override { return view_.bytes(); }
  Status Put(size_t offset, size_t bytes, uint32_t tag) override {
    if (!socket_.valid()) return ConnectionClosed();
    LOCKSTEP_CHECK(offset <= window_bytes_ && bytes <= window_bytes_ - offset);
    PutLine& line = out_->puts[++puts_ % kPutsAhead];
    line.offset = offset;
    line.bytes = bytes;
    line.tag = tag;
    line.number.store(puts_, std::memory_order_release);
    // No fence: a reader that goes to sleep at this very moment wakes by itself (kLongestNapUs).
    if (out_->reader_sleeps.load(std::memory_order_relaxed) != 0) WakeReader();
    return OkStatus();
  }
  Status Expect(size_t offset, size_t bytes) override {
    if (!socket_.valid()) return ConnectionClosed();
    LOCKSTEP_CHECK(offset <= window_bytes_ && bytes <= window_bytes_ - offset);
    expected_.Push({FrameKind::kPut, 0, offset, bytes});
    return OkStatus();
  }
  uint32_t put_tag(uint64_t number) const override { return put_tags_[number % kPutsAhead]; }

  Status PostSend(std::span<const std::byte> data, uint32_t tag) override {
    if (!socket_.valid()) return ConnectionClosed();
    outgoing_.Push({FrameKind::kMessage, tag, 0, data.size()}, data);
    return OkStatus();
  }
  Status PostReceive(std::span<std::byte> buffer) override {
    if (!socket_.valid()) return ConnectionClosed();
    incoming_.Push({FrameKind::kMessage, 0, 0, buffer.size()}, buffer);
    return OkStatus();
  }
  uint32_t message_tag(uint64_t number) const override { return incoming_.message_tag(number); }

  StatusOr<LinkProgress> Poll() override {
    if (!socket_.valid()) return ConnectionClosed();
    LOCKSTEP_ASSIGN_OR_RETURN(const bool moved, MoveAll());
    const bool waiting = !(outgoing_.empty() && incoming_.empty() && expected_.empty());
    if (moved || !waiting) {
      idle_polls_ = 0;
    } else if (++idle_polls_ >= kPollsPerLivenessCheck) {
      idle_polls_ = 0;
      LOCKSTEP_RETURN_IF_ERROR(CheckPeer());
    }
    return LinkProgress{outgoing_.messages(), incoming_.messages(), puts_, arrivals_};
  }

  void WaitReadable(int64_t timeout_us) override {
    if (!socket_.valid()) return;
    // A full ring has no wake-up, because the reader would pay for it on every message, and that of
    // a put may be missed.
    if (!outgoing_.empty() || !expected_.empty()) timeout_us = std::min(timeout_us, kLongestNapUs);
    in_->reader_sleeps.store(1, std::memory_order_seq_cst);
    if (in_->written.load(std::memory_order_seq_cst) == read_ && !PutArrived()) {
      (void)WaitForSocket(socket_.get(), true, false, timeout_us);
      idle_polls_ =
          kPollsPerLivenessCheck;  // a wake-up or an end stands in the socket: look at once
    }
    in_->reader_sleeps.store(0, std::memory_order_relaxed);
  }

  void Close() override { socket_.Reset(); }

 private:
  StatusOr<bool> MoveAll() {
    LOCKSTEP_ASSIGN_OR_RETURN(const bool sent, MoveOut());
    LOCKSTEP_ASSIGN_OR_RETURN(const bool received, MoveIn());
    LOCKSTEP_ASSIGN_OR_RETURN(const bool arrived, TakePuts());
    return sent || received || arrived;
  }

  bool PutArrived() const {
    const PutLine& line = in_->puts[(arrivals_ + 1) % kPutsAhead];
    return !expected_.empty() && line.number.load(std::memory_order_acquire) > arrivals_;
  }

  StatusOr<bool> TakePuts() {
    bool moved = false;
    while (PutArrived()) {
      const PutLine& line = in_->puts[(arrivals_ + 1) % kPutsAhead];
      if (line.number.load(std::memory_order_relaxed) != arrivals_ + 1) {
        return PeerLostError("is more than %d puts ahead: the ranks are out of step", kPutsAhead);
      }
      LOCKSTEP_RETURN_IF_ERROR(
          CheckFrame({FrameKind::kPut, line.tag, line.offset, line.bytes}, expected_[0]));
      put_tags_[arrivals_++ % kPutsAhead] = line.tag;
      expected_.Pop();
      moved = true;
    }
    return moved;
  }

  // Copies as much of `parts` as `bytes` allow into the ring (or out of it), from its byte number
  // `place` on; returns how much.
  template <typename Copy>
  static size_t CopyParts(std::span<const iovec> parts, uint64_t place, size_t bytes, Copy copy) {
    size_t copied = 0;
    for (const iovec& part : parts) {
      for (size_t done = 0; done < part.iov_len && copied < bytes;) {
        const size_t start = static_cast<size_t>(place + copied) % kRingBytes;
        const size_t count = std::min({part.iov_len - done, kRingBytes - start, bytes - copied});
        copy(start, static_cast<std::byte*>(part.iov_base) + done, count);
        done += count;
        copied += count;
      }
    }
    return copied;
  }

  StatusOr<bool> MoveOut() {
    bool moved = false;
    while (!outgoing_.empty()) {
      size_t free_bytes = kRingBytes - static_cast<size_t>(written_ - seen_read_);
      if (free_bytes < kPieceBytes) {
        seen_read_ = out_->read.load(std::memory_order_acquire);
        if (written_ - seen_read_ > kRingBytes) return PeerLostError("damaged the shared memory");
        free_bytes = kRingBytes - static_cast<size_t>(written_ - seen_read_);
      }
      iovec parts[kPartsPerPiece];
      const size_t count = outgoing_.Parts(parts);
      const size_t piece =
          CopyParts(std::span(parts).first(count), written_, std::min(free_bytes, kPieceBytes),
                    [&](size_t at, const std::byte* from, size_t n) {
                      std::memcpy(out_->data + at, from, n);
                    });
      if (piece == 0) return moved;
      outgoing_.Advance(piece);
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
    while (!incoming_.empty()) {
      const uint64_t written = in_->written.load(std::memory_order_acquire);
      if (written - read_ > kRingBytes) return PeerLostError("damaged the shared memory");
      if (written == read_) return moved;
      iovec parts[kPartsPerPiece];
      const size_t count = incoming_.Parts(parts);
      const size_t piece = CopyParts(
          std::span(parts).first(count), read_, static_cast<size_t>(written - read_),
          [&](size_t at, std::byte* to, size_t n) { std::memcpy(to, in_->data + at, n); });
      LOCKSTEP_RETURN_IF_ERROR(incoming_.Advance(piece));
      read_ += piece;
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
      // What it left behind still counts.
      LOCKSTEP_ASSIGN_OR_RETURN(const bool moved, MoveAll());
      return moved ? OkStatus() : received.status();
    }
  }

  UniqueFd socket_;
  Shared* shared_;
  Channel* out_;
  Channel* in_;
  size_t window_bytes_;
  Window view_;             // the peer's own window, mapped
  uint64_t puts_ = 0;       // of this side so far
  uint64_t arrivals_ = 0;   // of the peer, taken
  uint64_t written_ = 0;    // of the outgoing ring; only this side writes it
  uint64_t seen_read_ = 0;  // the peer's counter when last looked at
  uint64_t read_ = 0;       // of the incoming ring
  int idle_polls_ = 0;
  Fifo<FrameHeader> expected_;  // puts of the peer
  std::array<uint32_t, kPutsAhead> put_tags_{};
  FrameSender outgoing_;
  FrameReceiver incoming_;
};

}  // namespace

StatusOr<std::unique_ptr<Link>> MakeShmLink(UniqueFd socket, const Window& window, bool create,
                                            Deadline deadline) {
  const size_t window_bytes = window.bytes().size();
  UniqueFd rings;
  if (create) {
    LOCKSTEP_ASSIGN_OR_RETURN(const int created, os::CreateSharedMemory(sizeof(Shared)));
    rings = UniqueFd(created);
    LOCKSTEP_RETURN_IF_ERROR(SendDescriptor(socket.get(), rings.get()));
  } else {
    LOCKSTEP_ASSIGN_OR_RETURN(rings, ReceiveDescriptor(socket.get(), deadline));
  }
  Window view;
  if (window_bytes > 0) {
    LOCKSTEP_RETURN_IF_ERROR(SendDescriptor(socket.get(), window.descriptor()));
    LOCKSTEP_ASSIGN_OR_RETURN(UniqueFd peer_window, ReceiveDescriptor(socket.get(), deadline));
    LOCKSTEP_ASSIGN_OR_RETURN(view, Window::Map(std::move(peer_window), window_bytes));
  }
  // A fresh mapping is all zeros, which is what the rings and the puts start with.
  LOCKSTEP_ASSIGN_OR_RETURN(void* mapped, os::MapSharedMemory(rings.get(), sizeof(Shared), true));
  return std::make_unique<ShmLink>(std::move(socket), static_cast<Shared*>(mapped), create,
                                   window_bytes, std::move(view));
}

}  // namespace lockstep
