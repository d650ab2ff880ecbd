// A client that sends exactly what it is told, byte for byte.
#pragma once

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "runtime/base/check.h"

namespace lockstep::testing {

class RawClient {
 public:
  // `from`: the client's own address, 127.0.0.1 plus so many.
  explicit RawClient(int port, uint32_t from = 0)
      : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in own{};
    own.sin_family = AF_INET;
    own.sin_addr.s_addr = htonl(INADDR_LOOPBACK + from);
    const int when_connected = 1;  // choose the port, so that one serves several destinations
    setsockopt(fd_, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &when_connected, sizeof when_connected);
    LOCKSTEP_CHECK(bind(fd_, reinterpret_cast<sockaddr*>(&own), sizeof own) == 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    // A signal (libFuzzer's alarm) lets the connection go on to be made.
    while (connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 &&
           errno != EISCONN) {
      LOCKSTEP_CHECK(errno == EINTR || errno == EALREADY);
    }
  }
  ~RawClient() { Close(); }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  void Send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent < 0 && errno == EINTR) continue;
      if (sent <= 0) return;  // the server has closed: what it said before is still to be read
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
  }
  void HalfClose() { shutdown(fd_, SHUT_WR); }
  void Close() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }

  // Everything until `end` was seen, or the connection ends, or `timeout_ms` pass without a byte.
  std::string ReadUntil(std::string_view end, int timeout_ms = 20'000) {
    std::string got;
    char part[4096];
    pollfd entry{fd_, POLLIN, 0};
    while (end.empty() || got.find(end) == std::string::npos) {
      const int ready = poll(&entry, 1, timeout_ms);
      if (ready < 0 && errno == EINTR) continue;
      if (ready <= 0) break;
      const ssize_t bytes = read(fd_, part, sizeof part);
      if (bytes < 0 && errno == EINTR) continue;
      if (bytes <= 0) {
        ended_ = true;
        break;
      }
      got.append(part, static_cast<size_t>(bytes));
    }
    return got;
  }
  std::string ReadToEnd(int timeout_ms = 20'000) { return ReadUntil("", timeout_ms); }
  bool ended() const { return ended_; }
  int fd() const { return fd_; }

 private:
  int fd_;
  bool ended_ = false;
};

// The answer to one request on a connection of its own.
inline std::string Ask(int port, const std::string& method, const std::string& target,
                       const std::string& body = "", const std::string& fields = "") {
  RawClient client(port);
  client.Send(method + " " + target + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" +
              (body.empty() ? "" : "Content-Length: " + std::to_string(body.size()) + "\r\n") +
              fields + "\r\n" + body);
  return client.ReadToEnd();
}

// What stands behind the head, chunks joined.
inline std::string BodyOf(const std::string& answer) {
  const size_t split = answer.find("\r\n\r\n");
  if (split == std::string::npos) return "";
  std::string body = answer.substr(split + 4);
  if (answer.find("Transfer-Encoding: chunked") > split) return body;
  std::string joined;
  for (size_t at = 0; at < body.size();) {
    const size_t line = body.find("\r\n", at);
    if (line == std::string::npos) break;
    const size_t bytes = std::stoul(body.substr(at, line - at), nullptr, 16);
    joined += body.substr(line + 2, bytes);
    at = line + 2 + bytes + 2;
    if (bytes == 0) break;
  }
  return joined;
}

}  // namespace lockstep::testing
