// A link over a stream socket. All that waits travels in one system call where it fits.
#include <sys/socket.h>
#include <sys/uio.h>

#include <cerrno>
#include <cstring>

#include "runtime/base/check.h"
#include "transport/backends.h"
#include "transport/frame.h"

namespace lockstep {
namespace {

constexpr size_t kPartsPerCall = 16;

class TcpLink final : public Link {
 public:
  TcpLink(UniqueFd socket, std::span<const std::byte> window, Window view)
      : socket_(std::move(socket)), window_(window), view_(std::move(view)) {}

  const LinkTraits& traits() const override {
    static constexpr LinkTraits kTraits = {
        .name = "tcp", .detects_peer_death = true, .put_copies = true, .puts_need_polls = true};
    return kTraits;
  }

  LinkPath path() const override { return {.address = LocalEndpoint(socket_.get()).host}; }

  std::span<const std::byte> view() const override { return view_.bytes(); }
  Status Put(size_t offset, size_t bytes, uint32_t tag) override {
    LOCKSTEP_CHECK(offset <= window_.size() && bytes <= window_.size() - offset);
    return Send({FrameKind::kPut, tag, offset, bytes}, window_.subspan(offset, bytes));
  }
  Status Expect(size_t offset, size_t bytes) override {
    LOCKSTEP_CHECK(offset <= window_.size() && bytes <= window_.size() - offset);
    return Receive({FrameKind::kPut, 0, offset, bytes}, view_.bytes().subspan(offset, bytes));
  }
  uint32_t put_tag(uint64_t number) const override { return incoming_.put_tag(number); }

  Status PostSend(std::span<const std::byte> data, uint32_t tag) override {
    return Send({FrameKind::kMessage, tag, 0, data.size()}, data);
  }
  Status PostReceive(std::span<std::byte> buffer) override {
    return Receive({FrameKind::kMessage, 0, 0, buffer.size()}, buffer);
  }
  uint32_t message_tag(uint64_t number) const override { return incoming_.message_tag(number); }

  StatusOr<LinkProgress> Poll() override {
    if (!socket_.valid()) return ConnectionClosed();
    LOCKSTEP_RETURN_IF_ERROR(MoveOut());
    LOCKSTEP_RETURN_IF_ERROR(MoveIn());
    return LinkProgress{outgoing_.messages(), incoming_.messages(), outgoing_.puts(),
                        incoming_.puts()};
  }
  void WaitReadable(int64_t timeout_us) override {
    if (socket_.valid()) (void)WaitForSocket(socket_.get(), true, !outgoing_.empty(), timeout_us);
  }
  void Close() override { socket_.Reset(); }

 private:
  Status Send(const FrameHeader& header, std::span<const std::byte> data) {
    if (!socket_.valid()) return ConnectionClosed();
    outgoing_.Push(header, data);
    return OkStatus();
  }
  Status Receive(const FrameHeader& expected, std::span<std::byte> buffer) {
    if (!socket_.valid()) return ConnectionClosed();
    incoming_.Push(expected, buffer);
    return OkStatus();
  }

  // Both move until nothing is left to do or the kernel takes or gives no more.
  Status MoveOut() {
    size_t moved = 0;
    for (bool more = true; more && !outgoing_.empty();) {
      LOCKSTEP_ASSIGN_OR_RETURN(more, Move(&outgoing_, &sendmsg, SendFlags(), &moved));
      outgoing_.Advance(moved);
    }
    return OkStatus();
  }
  Status MoveIn() {
    size_t moved = 0;
    for (bool more = true; more && !incoming_.empty();) {
      LOCKSTEP_ASSIGN_OR_RETURN(more, Move(&incoming_, &recvmsg, ReceiveFlags(), &moved));
      LOCKSTEP_RETURN_IF_ERROR(incoming_.Advance(moved));
    }
    return OkStatus();
  }

  // One system call; true when it moved all that was offered, so that there may be more.
  template <typename Queue, typename Call>
  StatusOr<bool> Move(Queue* queue, Call call, int flags, size_t* moved) {
    iovec parts[kPartsPerCall];
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = queue->Parts(parts);
    size_t wanted = 0;
    for (const iovec& part : std::span(parts).first(message.msg_iovlen)) wanted += part.iov_len;
    while (true) {
      const ssize_t result = call(socket_.get(), &message, flags);
      *moved = result > 0 ? static_cast<size_t>(result) : 0;
      if (result > 0) return *moved == wanted;
      if (result == 0) return ConnectionClosed();
      if (errno == EINTR) continue;
      if (errno == EAGAIN || errno == EWOULDBLOCK) return false;
      if (errno == EPIPE || errno == ECONNRESET) return ConnectionClosed();
      return PeerLostError("lost its data connection: %s", std::strerror(errno));
    }
  }

  UniqueFd socket_;
  std::span<const std::byte> window_;
  Window view_;  // a copy of the peer's window
  FrameSender outgoing_;
  FrameReceiver incoming_;
};

}  // namespace

StatusOr<std::unique_ptr<Link>> MakeTcpLink(UniqueFd socket, std::span<const std::byte> window) {
  LOCKSTEP_ASSIGN_OR_RETURN(Window view, Window::Allocate(window.size()));
  return std::make_unique<TcpLink>(std::move(socket), window, std::move(view));
}

}  // namespace lockstep
