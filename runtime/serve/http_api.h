// The HTTP end of the engine: OpenAI's API, vLLM's and llama.cpp's routes beside it, health and
// metrics. Which route does what stands in http_api.cc, in one table; what is asked and answered in
// openapi.json, which the server publishes.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/engine/cluster_watch.h"
#include "runtime/engine/engine.h"
#include "runtime/http/tls.h"
#include "runtime/serve/call.h"
#include "runtime/serve/served_model.h"
#include "runtime/text/model_text.h"

namespace lockstep {

struct HttpApiOptions {
  std::string host = "127.0.0.1";
  int64_t port = 0;  // 0: a free one
  int most_connections = 1024;
  uint64_t most_body_bytes = 32 << 20;
  // What GET /cluster and the metrics tell of the ranks. Empty: nothing is known of them.
  std::function<ClusterView()> cluster;
  TlsFiles tls;
};

struct HttpRoute {
  std::string method;
  std::string path;
  bool open = false;  // without a key
};

// All that there are.
std::vector<HttpRoute> HttpRoutes();

class HttpApi {
 public:
  virtual ~HttpApi() = default;  // Shutdown(0)
  virtual int port() const = 0;
  // Accepts no more requests; open ones may end within `grace_ms`, then they are cut.
  virtual void Shutdown(int64_t grace_ms) = 0;
};

// Starts serving. `access` (null: nobody is asked for a key), `engine` and `text` must outlive the
// server. A UsageError names host and port and their flags if they cannot be used.
StatusOr<std::unique_ptr<HttpApi>> StartHttpApi(const HttpApiOptions& options,
                                                const ServedModel& model, const ModelText& text,
                                                Access* access, Engine& engine);

}  // namespace lockstep
