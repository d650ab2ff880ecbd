// A server of files inside the test, and clients that send exactly what they are told.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "launcher/files/file_server.h"

namespace lockstep {

inline constexpr char kSecret[] = "0123456789abcdef0123456789abcdef";

struct Serving {
  explicit Serving(const std::string& directory, const std::string& secret = "",
                   const std::map<std::string, std::string>& texts = {}) {
    FileServerOptions options;
    options.directory = directory;
    options.secret = secret;
    auto listening = FileServer::Listen(options);
    EXPECT_TRUE(listening.ok()) << listening.status();
    server = std::move(*listening);
    server->Serve(texts);
  }
  std::string url() const { return "http://127.0.0.1:" + std::to_string(server->port()); }
  std::unique_ptr<FileServer> server;
};

inline int ConnectTo(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  return fd;
}

// What a client gets that sends exactly this and then reads to the end.
inline std::string Exchange(int port, const std::string& request) {
  const int fd = ConnectTo(port);
  EXPECT_EQ(send(fd, request.data(), request.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(request.size()));
  std::string answer;
  char part[4096];
  for (pollfd entry{fd, POLLIN, 0}; poll(&entry, 1, 20'000) > 0;) {
    const ssize_t got = read(fd, part, sizeof part);
    if (got <= 0) break;
    answer.append(part, static_cast<size_t>(got));
  }
  close(fd);
  return answer;
}

inline std::string Get(const Serving& serving, const std::string& target,
                       const std::string& more = "", const std::string& method = "GET") {
  return Exchange(serving.server->port(), method + " " + target +
                                              " HTTP/1.1\r\nHost: localhost\r\nConnection: "
                                              "close\r\n" +
                                              more + "\r\n");
}

}  // namespace lockstep
