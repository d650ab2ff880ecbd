// A link over a stream socket. All posts that wait travel in one system call where they fit.
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "transport/backends.h"
#include "transport/post_queue.h"

namespace lockstep {
namespace {

constexpr size_t kPartsPerCall = 16;

class TcpLink final : public Link {
 public:
  explicit TcpLink(UniqueFd socket) : socket_(std::move(socket)) {}

  const LinkTraits& traits() const override {
    static constexpr LinkTraits kTraits = {
        .name = "tcp", .needs_registered_memory = false, .detects_peer_death = true};
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
    LOCKSTEP_RETURN_IF_ERROR(MoveAll(&sends_, &sendmsg, SendFlags()));
    LOCKSTEP_RETURN_IF_ERROR(MoveAll(&receives_, &recvmsg, ReceiveFlags()));
    return LinkProgress{sends_.completed(), receives_.completed()};
  }
  void WaitReadable(int64_t timeout_us) override {
    if (socket_.valid()) (void)WaitForSocket(socket_.get(), true, !sends_.empty(), timeout_us);
  }
  void Close() override { socket_.Reset(); }

 private:
  // Moves until the queue is empty or the kernel takes or gives no more.
  template <typename Byte, typename Call>
  Status MoveAll(PostQueue<Byte>* queue, Call call, int flags) {
    while (!queue->empty()) {
      iovec parts[kPartsPerCall];
      size_t wanted = 0;
      msghdr message{};
      message.msg_iov = parts;
      const size_t count = std::min(queue->size(), kPartsPerCall);
      for (size_t i = 0; i < count; ++i) {
        const std::span<Byte> part = (*queue)[i];
        parts[i] = {const_cast<std::byte*>(part.data()), part.size()};
        wanted += part.size();
      }
      message.msg_iovlen = count;
      const ssize_t moved = call(socket_.get(), &message, flags);
      if (moved > 0) {
        queue->Advance(static_cast<size_t>(moved));
        if (static_cast<size_t>(moved) < wanted) return OkStatus();
        continue;
      }
      if (moved == 0) return ConnectionClosed();
      if (errno == EINTR) continue;
      if (errno == EAGAIN || errno == EWOULDBLOCK) return OkStatus();
      if (errno == EPIPE || errno == ECONNRESET) return ConnectionClosed();
      return PeerLostError("lost its data connection: %s", std::strerror(errno));
    }
    return OkStatus();
  }

  UniqueFd socket_;
  PostQueue<const std::byte> sends_;
  PostQueue<std::byte> receives_;
};

}  // namespace

std::unique_ptr<Link> MakeTcpLink(UniqueFd socket) {
  return std::make_unique<TcpLink>(std::move(socket));
}

}  // namespace lockstep
