// Streams from lockstep's own HTTP server (Boost.Beast): GET gives EVENTS events of 100 bytes, one
// every 50 ms. Prints its port, then serves until its stdin ends.
//
//     streams_beast THREADS EVENTS
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <thread>

#include "runtime/http/server.h"

namespace lockstep {
namespace {

// What the clock has let out so far, for every stream that is under way.
class Ticker {
 public:
  Ticker() : thread_([this](const std::stop_token& stop) { Run(stop); }) {}

  uint64_t Add(std::function<void()> wake) {
    const std::lock_guard lock(mutex_);
    wakes_[next_] = std::move(wake);
    return next_++;
  }
  void Remove(uint64_t id) {
    const std::lock_guard lock(mutex_);
    wakes_.erase(id);
  }

 private:
  void Run(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      const std::lock_guard lock(mutex_);
      for (const auto& [id, wake] : wakes_) wake();
    }
  }

  std::mutex mutex_;
  std::map<uint64_t, std::function<void()>> wakes_;
  uint64_t next_ = 0;
  std::jthread thread_;
};

class Stream final : public HttpReply {
 public:
  Stream(Ticker& ticker, int events, std::function<void()> wake)
      : ticker_(ticker), left_(events), id_(ticker.Add(std::move(wake))) {}
  ~Stream() override { ticker_.Remove(id_); }

  std::optional<HttpHead> Head() override {
    return HttpHead{.fields = {{"Content-Type", "text/event-stream"}}};
  }
  HttpPart Next() override {
    const auto now = std::chrono::steady_clock::now();
    if (now < due_) return {};
    due_ = now + std::chrono::milliseconds(40);
    return {event_, --left_ == 0};
  }

 private:
  Ticker& ticker_;
  int left_;
  const uint64_t id_;
  const std::string event_ = "data: " + std::string(92, 'x') + "\n\n";
  std::chrono::steady_clock::time_point due_;
};

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) {
  using namespace lockstep;
  if (argc != 3) return 2;
  Ticker ticker;
  const auto server = HttpServer::Listen({.most_connections = 1024, .threads = std::atoi(argv[1])});
  if (!server.ok()) return 1;
  const int events = std::atoi(argv[2]);
  (*server)->Serve({
      .refuse = [](const HttpCall&) { return std::unique_ptr<HttpReply>(); },
      .answer = [&](HttpCall, std::function<void()> wake) -> std::unique_ptr<HttpReply> {
        return std::make_unique<Stream>(ticker, events, std::move(wake));
      },
      .malformed = [](const HttpCall&, int status,
                      std::string_view) { return HttpText(status, "text/plain", ""); },
  });
  std::printf("%d\n", (*server)->port());
  std::fflush(stdout);
  while (std::getchar() != EOF) {
  }
}
