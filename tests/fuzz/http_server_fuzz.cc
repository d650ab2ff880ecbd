// Hostile bytes to the HTTP server: it answers or hangs up, and goes on serving.
#include <cstddef>
#include <cstdint>

#include "runtime/base/check.h"
#include "runtime/base/log.h"
#include "runtime/http/server.h"
#include "tests/runtime/http/client.h"

namespace lockstep {
namespace {

const HttpServer& Server() {
  static const HttpServer& server = [] {
    log::Configure(log::Level::kOff, -1);
    auto* made = HttpServer::Listen({.most_body_bytes = 10'000, .request_ms = 500, .body_ms = 500})
                     .value()
                     .release();
    made->Serve({
        .refuse = [](const HttpCall& call) -> std::unique_ptr<HttpReply> {
          if (call.target.size() % 7 == 3) return HttpText(401, "text/plain", "no");
          return nullptr;
        },
        .answer = [](HttpCall call, std::function<void()>) -> std::unique_ptr<HttpReply> {
          LOCKSTEP_CHECK(call.body.size() <= 10'000);
          return HttpText(200, "text/plain", call.body);
        },
        .malformed =
            [](const HttpCall&, int status, std::string_view what) {
              return HttpText(status, "text/plain", std::string(what));
            },
    });
    return std::ref(*made);
  }();
  return server;
}

}  // namespace
}  // namespace lockstep

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // A closed connection keeps its port for a minute, and an address has 28,000.
  static uint32_t runs = 0;
  lockstep::testing::RawClient client(lockstep::Server().port(), runs++ / 10'000 % 1000);
  client.Send({reinterpret_cast<const char*>(data), size});
  client.HalfClose();
  client.ReadToEnd(20'000);
  LOCKSTEP_CHECK(client.ended());
  return 0;
}
