#include "transport/socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <memory>

#include "absl/strings/str_join.h"
#include "runtime/base/os.h"

namespace lockstep {
namespace {

constexpr int kBacklog = 128;
// What is under way to one peer stays in the processor's cache; what arrives is never refused.
constexpr int kDataSendBytes = 1 << 20;
constexpr int kDataReceiveBytes = 4 << 20;

void MakeNonBlocking(int fd) {
  (void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
  (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
#ifdef SO_NOSIGPIPE
  const int on = 1;
  (void)setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof(on));
#endif
}

void SetFlag(int fd, int level, int option) {
  const int on = 1;
  (void)setsockopt(fd, level, option, &on, sizeof(on));
}

using AddressList = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

StatusOr<AddressList> Resolve(const Endpoint& endpoint, bool passive) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : 0);
  addrinfo* found = nullptr;
  const std::string port = std::to_string(endpoint.port);
  const int error = getaddrinfo(endpoint.host.empty() ? nullptr : endpoint.host.c_str(),
                                port.c_str(), &hints, &found);
  if (error != 0) {
    return UsageError("cannot resolve the address '%s': %s", endpoint.host, gai_strerror(error));
  }
  return AddressList(found, &freeaddrinfo);
}

Endpoint EndpointOf(const sockaddr_storage& address) {
  char text[INET6_ADDRSTRLEN] = {};
  if (address.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
    inet_ntop(AF_INET, &v4.sin_addr, text, sizeof(text));
    return {text, ntohs(v4.sin_port)};
  }
  if (address.ss_family == AF_INET6) {
    const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address);
    inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof(text));
    const std::string_view mapped = "::ffff:";  // IPv4 through a dual-stack socket
    const std::string host = text;
    if (host.rfind(mapped, 0) == 0 && host.find('.') != std::string::npos) {
      return {host.substr(mapped.size()), ntohs(v6.sin6_port)};
    }
    return {host, ntohs(v6.sin6_port)};
  }
  return {"local", 0};
}

int MtuOf(const char* interface) {
  const UniqueFd fd(socket(AF_INET, SOCK_DGRAM, 0));
  ifreq request{};
  std::strncpy(request.ifr_name, interface, sizeof(request.ifr_name) - 1);
  return ioctl(fd.get(), SIOCGIFMTU, &request) == 0 ? request.ifr_mtu : 0;
}

Status ListenFailed(const Endpoint& endpoint, int error) {
  if (error == EADDRINUSE) {
    return UsageError(
        "port %d of %s is already in use; stop the program that holds it or choose another port "
        "with "
        "--rendezvous",
        endpoint.port, endpoint.host.empty() ? "this machine" : endpoint.host);
  }
  if (error == EADDRNOTAVAIL) {
    return UsageError(
        "cannot listen on %s: this machine does not have that address; rank 0 must run on the "
        "machine "
        "that --rendezvous names",
        endpoint.Text());
  }
  if (error == EACCES) {
    return UsageError(
        "cannot listen on %s: permission denied; choose a port above 1023 with --rendezvous",
        endpoint.Text());
  }
  return InternalError("cannot listen on %s: %s", endpoint.Text(), std::strerror(error));
}

// Connects one address; errno in *error when it fails.
UniqueFd ConnectOne(const addrinfo& address, Deadline deadline, int* error) {
  UniqueFd fd(socket(address.ai_family, SOCK_STREAM, 0));
  *error = errno;
  if (!fd.valid()) return {};
  MakeNonBlocking(fd.get());
  if (connect(fd.get(), address.ai_addr, address.ai_addrlen) == 0) return fd;
  *error = errno;
  if (*error != EINPROGRESS) return {};
  *error = ETIMEDOUT;
  while (!deadline.Passed()) {
    if (!WaitForSocket(fd.get(), false, true,
                       std::min<int64_t>(deadline.RemainingMs(), 1000) * 1000))
      continue;
    socklen_t size = sizeof(*error);
    (void)getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, error, &size);
    if (*error != 0) return {};
    return fd;
  }
  return {};
}

}  // namespace

void UniqueFd::Reset() {
  if (fd_ >= 0) (void)close(fd_);
  fd_ = -1;
}

std::string Endpoint::Text() const {
  if (host.find(':') != std::string::npos) return absl::StrFormat("[%s]:%d", host, port);
  return absl::StrFormat("%s:%d", host, port);
}

StatusOr<Endpoint> ParseEndpoint(std::string_view text) {
  const std::string whole(text);
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || colon + 1 == text.size()) {
    return UsageError("'%s' is not an address: expected host:port", whole);
  }
  std::string_view host = text.substr(0, colon);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string_view::npos) {
    return UsageError("'%s' is not an address: write an IPv6 address as [address]:port", whole);
  }
  Endpoint endpoint;
  endpoint.host = std::string(host);
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data() + colon + 1, end, endpoint.port);
  if (error != std::errc() || rest != end || endpoint.port < 0 || endpoint.port > 65535) {
    return UsageError("'%s' is not an address: the port must be a number from 0 to 65535", whole);
  }
  if (endpoint.host.empty())
    return UsageError("'%s' is not an address: the host is missing", whole);
  const auto foreign = [](char c) { return c == '[' || c == ']' || (c >= 0 && c <= ' '); };
  if (std::any_of(host.begin(), host.end(), foreign)) {
    return UsageError(
        "'%s' is not an address: a host has no brackets, blanks or control characters", whole);
  }
  return endpoint;
}

bool IsLoopback(std::string_view host) {
  return host == "localhost" || host == "::1" || host.substr(0, 4) == "127.";
}

std::vector<NetworkInterface> ListInterfaces() {
  std::vector<NetworkInterface> interfaces;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return interfaces;
  for (const int family : {AF_INET, AF_INET6}) {
    for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
      if (entry->ifa_addr == nullptr) continue;
      auto known =
          std::find_if(interfaces.begin(), interfaces.end(),
                       [&](const NetworkInterface& item) { return item.name == entry->ifa_name; });
      if (known == interfaces.end()) {
        interfaces.push_back({.name = entry->ifa_name,
                              .up = (entry->ifa_flags & IFF_UP) != 0,
                              .loopback = (entry->ifa_flags & IFF_LOOPBACK) != 0,
                              .mtu = MtuOf(entry->ifa_name),
                              .megabits = os::InterfaceMegabits(entry->ifa_name)});
        known = std::prev(interfaces.end());
      }
      if (entry->ifa_addr->sa_family != family) continue;
      sockaddr_storage address{};
      std::memcpy(&address, entry->ifa_addr,
                  family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6));
      // Link-local IPv6 addresses need a scope that another machine does not share.
      const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address);
      if (family == AF_INET6 && IN6_IS_ADDR_LINKLOCAL(&v6.sin6_addr)) continue;
      known->addresses.push_back(EndpointOf(address).host);
    }
  }
  freeifaddrs(list);
  return interfaces;
}

StatusOr<std::string> AddressOfInterface(const std::string& name) {
  std::vector<std::string> names;
  for (const NetworkInterface& interface : ListInterfaces()) {
    if (interface.name == name) {
      if (!interface.up) return UsageError("network interface '%s' is down", name);
      if (interface.addresses.empty())
        return UsageError("network interface '%s' has no IP address", name);
      return interface.addresses.front();
    }
    if (interface.up && !interface.addresses.empty()) {
      names.push_back(absl::StrFormat("%s (%s)", interface.name, interface.addresses.front()));
    }
  }
  return UsageError(
      "there is no network interface '%s'; this machine has %s; set --interface to one of them",
      name, absl::StrJoin(names, ", "));
}

StatusOr<UniqueFd> ListenTcp(const Endpoint& endpoint) {
  LOCKSTEP_ASSIGN_OR_RETURN(const AddressList addresses, Resolve(endpoint, true));
  int error = EADDRNOTAVAIL;
  for (const addrinfo* address = addresses.get(); address != nullptr; address = address->ai_next) {
    UniqueFd fd(socket(address->ai_family, SOCK_STREAM, 0));
    if (!fd.valid()) {
      error = errno;
      continue;
    }
    MakeNonBlocking(fd.get());
    SetFlag(fd.get(), SOL_SOCKET, SO_REUSEADDR);
    if (address->ai_family == AF_INET6) {
      const int off = 0;  // "::" also takes IPv4
      (void)setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
    }
    if (bind(fd.get(), address->ai_addr, address->ai_addrlen) == 0 &&
        listen(fd.get(), kBacklog) == 0)
      return fd;
    error = errno;
    if (error == EADDRINUSE) break;
  }
  return ListenFailed(endpoint, error);
}

StatusOr<UniqueFd> ConnectTcp(const Endpoint& endpoint, Deadline deadline) {
  LOCKSTEP_ASSIGN_OR_RETURN(const AddressList addresses, Resolve(endpoint, false));
  int error = EADDRNOTAVAIL;
  for (const addrinfo* address = addresses.get(); address != nullptr; address = address->ai_next) {
    UniqueFd fd = ConnectOne(*address, deadline, &error);
    if (fd.valid()) return fd;
  }
  return PeerLostError("cannot connect to %s: %s", endpoint.Text(), std::strerror(error));
}

UniqueFd AcceptPending(int listener) {
  UniqueFd fd(accept(listener, nullptr, nullptr));
  if (fd.valid()) MakeNonBlocking(fd.get());
  return fd;
}

Endpoint LocalEndpoint(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  (void)getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  return EndpointOf(address);
}

Endpoint RemoteEndpoint(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  (void)getpeername(fd, reinterpret_cast<sockaddr*>(&address), &size);
  return EndpointOf(address);
}

void TuneForData(int fd) {
  SetFlag(fd, IPPROTO_TCP, TCP_NODELAY);
  SetFlag(fd, SOL_SOCKET, SO_KEEPALIVE);
  (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &kDataSendBytes, sizeof(kDataSendBytes));
  (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &kDataReceiveBytes, sizeof(kDataReceiveBytes));
#ifdef TCP_CONGESTION
  // BBR paces: it cost up to a factor of 2 at 5 MB on loopback (measured 2026-11-21). Without
  // permission to choose, the system's stays.
  for (const char* name : {"cubic", "reno"}) {
    if (setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, std::strlen(name)) == 0) break;
  }
#endif
}

void TuneForControl(int fd) {
  SetFlag(fd, IPPROTO_TCP, TCP_NODELAY);
  SetFlag(fd, SOL_SOCKET, SO_KEEPALIVE);
}

int SendFlags() {
#ifdef MSG_NOSIGNAL
  return MSG_DONTWAIT | MSG_NOSIGNAL;
#else
  return MSG_DONTWAIT;  // SO_NOSIGPIPE is set on every socket
#endif
}

int ReceiveFlags() { return MSG_DONTWAIT; }

Status ConnectionClosed() { return PeerLostError("closed the connection"); }

StatusOr<size_t> SendSome(int fd, std::span<const std::byte> data) {
  while (true) {
    const ssize_t sent = send(fd, data.data(), data.size(), SendFlags());
    if (sent >= 0) return static_cast<size_t>(sent);
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return size_t{0};
    if (errno == EPIPE || errno == ECONNRESET) return ConnectionClosed();
    return PeerLostError("cannot be written to: %s", std::strerror(errno));
  }
}

StatusOr<size_t> ReceiveSome(int fd, std::span<std::byte> data) {
  while (true) {
    const ssize_t received = recv(fd, data.data(), data.size(), ReceiveFlags());
    if (received > 0) return static_cast<size_t>(received);
    if (received == 0) return ConnectionClosed();
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return size_t{0};
    if (errno == ECONNRESET) return ConnectionClosed();
    return PeerLostError("cannot be read from: %s", std::strerror(errno));
  }
}

bool WaitForSocket(int fd, bool readable, bool writable, int64_t timeout_us) {
  pollfd entry{fd, static_cast<short>((readable ? POLLIN : 0) | (writable ? POLLOUT : 0)), 0};
  const int64_t timeout_ms = std::max<int64_t>((timeout_us + 999) / 1000, 0);
  return poll(&entry, 1, static_cast<int>(std::min<int64_t>(timeout_ms, 1'000'000))) > 0;
}

Status SendAll(int fd, std::span<const std::byte> data, Deadline deadline) {
  while (!data.empty()) {
    LOCKSTEP_ASSIGN_OR_RETURN(const size_t sent, SendSome(fd, data));
    data = data.subspan(sent);
    if (sent > 0 || data.empty()) continue;
    if (deadline.Passed()) return PeerLostError("took no data in time");
    (void)WaitForSocket(fd, false, true, std::min<int64_t>(deadline.RemainingMs(), 1000) * 1000);
  }
  return OkStatus();
}

Status ReceiveAll(int fd, std::span<std::byte> data, Deadline deadline) {
  while (!data.empty()) {
    LOCKSTEP_ASSIGN_OR_RETURN(const size_t received, ReceiveSome(fd, data));
    data = data.subspan(received);
    if (received > 0) continue;
    if (deadline.Passed()) return PeerLostError("did not answer in time");
    (void)WaitForSocket(fd, true, false, std::min<int64_t>(deadline.RemainingMs(), 1000) * 1000);
  }
  return OkStatus();
}

}  // namespace lockstep
