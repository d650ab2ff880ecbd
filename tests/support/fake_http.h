// A web server that misbehaves as it is told: what a test's handler returns is sent as it is, and
// then the connection is closed. On 127.0.0.1, at a free port; ends with the test.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <functional>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "runtime/weights/http_client.h"

namespace lockstep::testing {

class FakeHttpServer;

struct FakeRequest {
  int number = 0;  // of the request, from 0
  std::string method, path, head;
  size_t first = 0, last = 0;  // of the Range header
  const FakeHttpServer* server = nullptr;
  int client = -1;  // Send's

  bool Has(const std::string& text) const { return head.find(text) != std::string::npos; }
};

class FakeHttpServer {
 public:
  using Handler = std::function<std::string(const FakeRequest&)>;

  explicit FakeHttpServer(Handler handler) : handler_(std::move(handler)) {
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(listen(listener_, 64), 0);
    socklen_t size = sizeof address;
    EXPECT_EQ(getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::jthread([this](const std::stop_token& stop) { Accept(stop); });
  }
  ~FakeHttpServer() {
    stopped_ = true;
    thread_.request_stop();
    thread_.join();
    close(listener_);
  }
  FakeHttpServer(const FakeHttpServer&) = delete;
  FakeHttpServer& operator=(const FakeHttpServer&) = delete;

  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }
  int requests() const { return requests_; }
  // A part of the answer, before what the handler returns.
  static void Send(const FakeRequest& request, const std::string& part) {
    for (size_t done = 0; done < part.size();) {
      const ssize_t sent =
          send(request.client, part.data() + done, part.size() - done, MSG_NOSIGNAL);
      if (sent <= 0) break;
      done += static_cast<size_t>(sent);
    }
  }
  // A handler that takes its time: returns early when the server ends.
  void Sleep(int ms) const {
    for (int i = 0; i < ms && !stopped_; i += 10)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }

 private:
  void Accept(const std::stop_token& stop) {
    std::vector<std::jthread> clients;
    while (!stop.stop_requested()) {
      pollfd entry{listener_, POLLIN, 0};
      if (poll(&entry, 1, 20) <= 0) continue;
      const int client = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (client >= 0) clients.emplace_back([this, client] { Serve(client); });
    }
  }

  void Serve(int client) {
    FakeRequest request{.server = this, .client = client};
    char part[4096];
    while (request.head.find("\r\n\r\n") == std::string::npos) {
      pollfd entry{client, POLLIN, 0};
      const ssize_t got = poll(&entry, 1, 5000) > 0 ? read(client, part, sizeof part) : 0;
      if (got <= 0) break;
      request.head.append(part, static_cast<size_t>(got));
    }
    const size_t space = request.head.find(' ');
    if (space != std::string::npos) {
      request.method = request.head.substr(0, space);
      request.path = request.head.substr(space + 1, request.head.find(' ', space + 1) - space - 1);
      const size_t range = request.head.find("Range: bytes=");
      if (range != std::string::npos)
        (void)std::sscanf(request.head.c_str() + range, "Range: bytes=%zu-%zu", &request.first,
                          &request.last);
      request.number = requests_++;
      Send(request, handler_(request));
    }
    shutdown(client, SHUT_WR);
    // Closing with unread bytes would reset the connection and lose what was sent.
    for (pollfd entry{client, POLLIN, 0}; poll(&entry, 1, 2000) > 0;) {
      if (read(client, part, sizeof part) <= 0) break;
    }
    close(client);
  }

  const Handler handler_;
  int listener_ = -1;
  int port_ = 0;
  std::atomic<int> requests_{0};
  std::atomic<bool> stopped_{false};
  std::jthread thread_;
};

inline constexpr size_t kFileBytes = 3 << 20;

inline std::string Contents(size_t bytes = kFileBytes) {
  std::mt19937 random(7);
  std::string text(bytes, '\0');
  for (char& c : text) c = static_cast<char>(random());
  return text;
}

// Gives up soon.
inline HttpOptions Quick() {
  HttpOptions options;
  options.tries = 4;
  options.first_wait_ms = 5;
  options.longest_wait_ms = 20;
  options.stall_timeout_ms = 1'000;
  return options;
}

inline std::string HttpText(const std::string& status, const std::string& headers,
                            const std::string& body) {
  return "HTTP/1.1 " + status + "\r\nConnection: close\r\n" + headers + "\r\n" + body;
}

// The right answer to a request for a range of `contents`.
inline std::string HttpPart(const std::string& contents, const FakeRequest& request,
                            const std::string& etag = "\"one\"") {
  if (contents.empty()) {
    return HttpText("416 Range Not Satisfiable",
                    "Content-Range: bytes */0\r\nContent-Length: 0\r\n", "");
  }
  const size_t last = std::min(request.last, contents.size() - 1);
  const std::string body = contents.substr(request.first, last + 1 - request.first);
  return HttpText("206 Partial Content",
                  "Content-Length: " + std::to_string(body.size()) + "\r\nContent-Range: bytes " +
                      std::to_string(request.first) + "-" + std::to_string(last) + "/" +
                      std::to_string(contents.size()) + "\r\nETag: " + etag + "\r\n",
                  body);
}

inline std::string HttpNotFound() {
  return HttpText("404 Not Found", "Content-Length: 4\r\n", "none");
}

}  // namespace lockstep::testing
