// Reads ranges of files by HTTP and HTTPS, whatever the connection does: waits are bounded, what
// breaks is taken up where it broke, and an answer that is not exactly what was asked for is an
// error that says so.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "runtime/base/file.h"
#include "runtime/base/status.h"
#include "runtime/weights/http_answer.h"

namespace lockstep {

// At the same time, to one server: enough to fill a line, few enough for many ranks to share it.
inline constexpr int kHttpConnections = 8;

struct HttpOptions {
  // Sent as "Authorization: Bearer ..." to the host of the URL that was given, never to one that it
  // redirects to, and over plain http:// to no proxy that the environment names. Empty: none.
  std::string token;
  // What to do about an answer of 401 or 403, for the error.
  std::string refused_remedy =
      "give --secret-file with the secret that the server was started with";
  int64_t connect_timeout_ms = 10'000;
  int64_t stall_timeout_ms = 30'000;  // without a byte, inside an answer or before it
  // After a lost connection, 5xx, 408 or 429: so many tries in a row that brought nothing. The wait
  // before the next one begins with the first of these and doubles up to the second; Retry-After
  // may ask for up to a minute.
  int tries = 8;
  int64_t first_wait_ms = 500;
  int64_t longest_wait_ms = 30'000;
  int connections = kHttpConnections;
  // Asked while waiting, from any thread; true ends it with InterruptedError. May be empty.
  std::function<bool()> stop;
};

// A directory's URL, taken apart.
struct HttpPlace {
  std::string scheme;  // "http" or "https"
  std::string host;
  std::string directory;  // "https://host:port/path", no slash at its end
  std::string file;       // of the URL of a .gguf file: its name, as in the URL
  std::string query;      // "?..." of the URL, sent along with every request
};
// A UsageError for anything but http:// and https:// with a host; for user names, passwords and
// fragments. `flag`: which gave it, for errors.
StatusOr<HttpPlace> ParseHttpUrl(const char* flag, const std::string& url);
// This machine, to which no proxy leads.
inline bool IsLoopbackHost(const std::string& host) {
  return host == "127.0.0.1" || host == "localhost" || host == "[::1]";
}

// A file on a server. What the server said of it first must hold to the end.
struct HttpTarget {
  std::string name;  // without the query, for errors
  std::string url;
  uint64_t size_bytes = 0;
  std::string etag;      // "": the server gives none
  bool strided = false;  // the server gives ranges of that unit (http_answer.h)

  std::mutex mutex;    // over what follows
  std::string direct;  // where the URL redirects to
};

class HttpClient {
 public:
  explicit HttpClient(HttpOptions options);
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  struct Beginning {
    bool absent = false;     // 404 or 410
    uint64_t bytes = 0;      // read: as many as the file has, but at most out.size()
    std::string media_type;  // "application/json"
  };
  // The first request for a file: fills what is known of the target, and `out` from its beginning.
  // `patient`: with all tries, otherwise with two. `lasting`: of an error, whether the server gave
  // an answer that no wait would change. Any thread.
  StatusOr<Beginning> Begin(HttpTarget* target, std::span<std::byte> out, bool patient,
                            bool* lasting = nullptr);
  // Fills `out` from `offset`; the range lies in the file. Any thread.
  Status Read(HttpTarget* target, uint64_t offset, std::span<std::byte> out);
  // The same for pieces of a file on a server that gives them.
  Status ReadStrided(HttpTarget* target, const StridedRange& range, std::span<std::byte> out);

  const HttpOptions& options() const { return options_; }
  // Of bodies of answers, so far.
  uint64_t bytes_received() const { return received_; }

 private:
  class Connections;
  struct Outcome;

  // One request, with no wait.
  Outcome Ask(HttpTarget* target, const HttpRequest& request);
  // Asks until `request` is answered whole.
  Status AskAll(HttpTarget* target, HttpRequest request);
  Status Wait(int64_t ms) const;
  // After a failure that may pass: counts it, and waits for the next try.
  struct Patience;
  Status BePatient(Patience* patience, const Outcome& outcome) const;

  const HttpOptions options_;
  std::unique_ptr<Connections> connections_;
  std::atomic<uint64_t> received_{0};
  mutable std::atomic<int64_t> told_ns_{0};  // when a retry was last logged
};

}  // namespace lockstep
