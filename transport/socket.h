// Sockets without blocking: what the links and the handshakes share. Every call that waits has a
// deadline.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/base/status.h"

namespace lockstep {

// Owns a file descriptor.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) {
      Reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  ~UniqueFd() { Reset(); }
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int Release() { return std::exchange(fd_, -1); }
  void Reset();

 private:
  int fd_ = -1;
};

// Where something listens: a numeric address or a host name, and a port.
struct Endpoint {
  std::string host;
  int port = 0;
  std::string Text() const;  // "10.0.0.1:29500", "[fe80::1]:29500"
};

// "host:port" or "[v6 address]:port".
StatusOr<Endpoint> ParseEndpoint(std::string_view text);
// True for 127.0.0.0/8, ::1 and "localhost".
bool IsLoopback(std::string_view host);

struct NetworkInterface {
  std::string name;
  bool up = false;
  bool loopback = false;
  int mtu = 0;                         // bytes; 0: not known
  int64_t megabits = 0;                // per second, as the driver says; 0: not known
  std::vector<std::string> addresses;  // numeric, IPv4 first
};
std::vector<NetworkInterface> ListInterfaces();
// The first address of the interface `name`; a usage error that lists the interfaces when there is
// none.
StatusOr<std::string> AddressOfInterface(const std::string& name);

// A listening TCP socket; port 0 picks a free one. A usage error when the port is taken or the
// address is not of this machine.
StatusOr<UniqueFd> ListenTcp(const Endpoint& endpoint);
// A connected, non-blocking TCP socket; tries every address of the name once.
StatusOr<UniqueFd> ConnectTcp(const Endpoint& endpoint, Deadline deadline);
// A listening Unix socket that only processes of this machine reach; `name` becomes what
// ConnectLocal needs. It leaves nothing behind when the process is killed.
StatusOr<UniqueFd> ListenLocal(std::string* name);
StatusOr<UniqueFd> ConnectLocal(const std::string& name);
// The next waiting connection, non-blocking; an invalid descriptor when there is none.
UniqueFd AcceptPending(int listener);

Endpoint LocalEndpoint(int fd);
Endpoint RemoteEndpoint(int fd);

// No delay, large buffers, and a congestion control that does not pace where the system allows to
// choose.
void TuneForData(int fd);
// No delay and keep-alive.
void TuneForControl(int fd);

// Moves all bytes or fails: a PeerLost error "closed the connection", or an error that names the
// deadline.
Status SendAll(int fd, std::span<const std::byte> data, Deadline deadline);
Status ReceiveAll(int fd, std::span<std::byte> data, Deadline deadline);
// Moves what can be moved now; 0 when nothing can.
StatusOr<size_t> SendSome(int fd, std::span<const std::byte> data);
StatusOr<size_t> ReceiveSome(int fd, std::span<std::byte> data);
// Waits until the descriptor is readable (or writable); false after the timeout.
bool WaitForSocket(int fd, bool readable, bool writable, int64_t timeout_us);

// The flags that keep a send or receive from blocking or raising SIGPIPE on this system.
int SendFlags();
int ReceiveFlags();
// "closed the connection", the error of every operation on a connection whose other end is gone.
Status ConnectionClosed();

}  // namespace lockstep
