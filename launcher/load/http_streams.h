// Many HTTP requests to one server at once from one thread, whose answers are taken as they come.
// HTTP/1.1, a connection each, which the next request takes over once it is idle. Nothing is asked
// twice but what a kept connection lost before any answer, and no redirect is followed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/weights/http_client.h"

namespace lockstep {

struct HttpStreamOptions {
  HttpPlace server;
  // Sent as "Authorization: Bearer ..."; empty: none. Plain http:// with it goes by no proxy.
  std::string key;
  std::string ca_file;  // PEM; empty: whom the system trusts
  int64_t connect_timeout_ms = 10'000;
};

struct HttpEnd {
  int status = 0;  // 0: there was no answer
  std::optional<std::string> retry_after;
  // Why the answer is not whole, in words that are the same for all of its kind, and what curl says
  // of this one. Empty: it is whole.
  std::string broken, detail;
};

// What takes an answer.
class HttpTaker {
 public:
  virtual ~HttpTaker() = default;
  // The next bytes of the body. False: the rest is of no use, and the connection is closed.
  virtual bool Take(int status, std::string_view bytes) = 0;
  // Once, the last call, unless the streams are destroyed before.
  virtual void End(const HttpEnd& end) = 0;
};

// A key as a client has it: the file's one word. An error says what else it holds.
StatusOr<std::string> ReadApiKey(const std::string& path);

class HttpStreams {
 public:
  explicit HttpStreams(HttpStreamOptions options);
  ~HttpStreams();  // hangs up on what is still open
  HttpStreams(const HttpStreams&) = delete;
  HttpStreams& operator=(const HttpStreams&) = delete;

  // Asks for `path` ("/v1/models"): by POST with a JSON `body`, by GET where that is empty. The
  // whole of it may take `timeout_ms`.
  void Start(const std::string& path, std::string body, int64_t timeout_ms,
             std::unique_ptr<HttpTaker> taker);
  // Waits for something to happen, at most so long, and has it taken.
  void Turn(int64_t longest_ms);
  size_t open() const { return streams_.size(); }
  // As many as this process may have descriptors for: no more can be started.
  bool full() const { return streams_.size() >= most_open_; }

 private:
  struct Stream;

  void TakeEnds();

  const HttpStreamOptions options_;
  void* multi_ = nullptr;    // curl's
  void* headers_ = nullptr;  // the same
  size_t most_open_ = 0;
  std::vector<std::unique_ptr<Stream>> streams_;
};

}  // namespace lockstep
