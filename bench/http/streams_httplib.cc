// The same streams as streams_beast from cpp-httplib, which holds a thread for each.
//
//     streams_httplib THREADS EVENTS
#include <httplib.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  httplib::Server server;
  server.new_task_queue = [&] {
    return new httplib::ThreadPool(static_cast<size_t>(std::atoi(argv[1])));
  };
  server.set_tcp_nodelay(true);
  const int events = std::atoi(argv[2]);
  const std::string event = "data: " + std::string(92, 'x') + "\n\n";
  server.Get("/", [&](const httplib::Request&, httplib::Response& response) {
    response.set_chunked_content_provider(
        "text/event-stream", [&, left = events](size_t, httplib::DataSink& sink) mutable {
          if (!sink.write(event.data(), event.size())) return false;
          if (--left == 0) {
            sink.done();
          } else {
            std::this_thread::sleep_for(std::chrono::milliseconds(50));
          }
          return true;
        });
  });
  const int port = server.bind_to_any_port("127.0.0.1");
  std::printf("%d\n", port);
  std::fflush(stdout);
  std::thread serving([&] { server.listen_after_bind(); });
  while (std::getchar() != EOF) {
  }
  server.stop();
  serving.join();
}
