// An HTTP/1.1 server for many slow clients: a few threads, no thread per connection. It knows
// connections, time limits and framing; what is asked and answered is its user's.
//
// An answer is asked for its parts whenever its client can take more, so a slow client holds one
// part, never the rest. Every answer also says what browsers must not do with it. No type of the
// library behind it appears here.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/http/tls.h"

namespace lockstep {

struct HttpField {
  std::string name;
  std::string value;
};

struct HttpCall {
  std::string method;  // as sent: "GET"
  std::string target;  // path and query as sent: "/v1/models?x=1"
  std::vector<HttpField> fields;
  std::string body;

  // The first field of that name, in any case; empty if there is none.
  std::string_view Field(std::string_view name) const;
};

struct HttpHead {
  int status = 200;
  std::vector<HttpField> fields;
  // Of the body. Absent: it goes in chunks, as it comes.
  std::optional<uint64_t> body_bytes;
  bool close = false;  // the connection ends after this answer
};

// What comes next of a body; the bytes are valid until the next call.
struct HttpPart {
  std::string_view bytes;
  bool last = false;
  bool failed = false;  // nothing more can come: the connection is cut, which tells the client
};

// One answer in the making. Used by one thread at a time; destroyed when its client has all of it
// or is gone, whichever comes first. A client that only says that it will send no more is gone.
class HttpReply {
 public:
  virtual ~HttpReply() = default;
  // Asked until there is one: at first, and after each wake.
  virtual std::optional<HttpHead> Head() = 0;
  // Asked when the client has taken what came before, and after each wake. No bytes and not last:
  // nothing to send yet.
  virtual HttpPart Next() = 0;
  // What tells a client that the answer is still being made, sent when HttpServerOptions::quiet_ms
  // have passed without a byte of the body. Empty: nothing.
  virtual std::string_view Sign() { return {}; }
};

// Whether a Host field, or what stands behind "://" in an Origin, names this machine's loopback: a
// page of another site must not reach a server that asks for nothing else by a name of its own.
bool IsLoopbackName(std::string_view host);

// A whole answer from text.
std::unique_ptr<HttpReply> HttpText(int status, std::string_view type, std::string text,
                                    std::vector<HttpField> more = {});

struct HttpHandler {
  // Looks at a head before its body is read (`body` is empty): an answer refuses the request (or is
  // all that there is to say to anybody), and its connection is closed if a body was to follow or
  // nothing was let in on it before; none lets it in. Any thread.
  std::function<std::unique_ptr<HttpReply>(const HttpCall&)> refuse;
  // Answers a request that was let in. `wake` has the answer asked again; it may be called from any
  // thread, at any time, also when the client is gone. Any thread; what it throws ends the
  // connection.
  std::function<std::unique_ptr<HttpReply>(HttpCall, std::function<void()> wake)> answer;
  // A request that is no HTTP (400), or beyond a limit (413, 431), or comes with too many others
  // (503). The call is empty where its head was not understood.
  std::function<std::unique_ptr<HttpReply>(const HttpCall&, int status, std::string_view what)>
      malformed;
};

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  int64_t port = 0;  // 0: a free one
  // Further ones wait until one of these ends. A quarter of them may be clients that have sent no
  // request that was let in; of more the oldest are dropped.
  int most_connections = 384;
  uint32_t most_head_bytes = 8 << 10;
  uint64_t most_body_bytes = 0;  // 0: requests have no body
  // Of all bodies that are being read or looked at.
  uint64_t most_body_bytes_together = 256 << 20;
  // A client that takes longer is dropped: until the head of its first request (TLS' handshake
  // included), from one request to the next, for a whole body, for one part of an answer.
  int64_t request_ms = 3'000;
  int64_t idle_ms = 60'000;
  int64_t body_ms = 60'000;
  int64_t part_ms = 30'000;
  int64_t quiet_ms = 15'000;
  int threads = 2;
  // Of these, requests with large bodies are answered by others, which hold up nobody's answer.
  int workers = 2;
  TlsFiles tls;
};

class HttpServer {
 public:
  // Listens when it returns: clients wait until they are served. A UsageError says why the address
  // cannot be used (the remedy depends on the flags, so it is the caller's); with TLS, use
  // TlsCertificate::Load before to tell what is wrong with the files.
  static StatusOr<std::unique_ptr<HttpServer>> Listen(const HttpServerOptions& options);
  // Once.
  virtual void Serve(HttpHandler handler) = 0;
  // Takes no more connections or requests; answers under way may end within `grace_ms`.
  virtual void Shutdown(int64_t grace_ms) = 0;
  virtual ~HttpServer() = default;  // stops: open connections are cut
  virtual int port() const = 0;
  virtual bool on_loopback() const = 0;
};

}  // namespace lockstep
