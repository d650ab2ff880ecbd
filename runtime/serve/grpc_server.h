// The gRPC end of the engine: service lockstep.v1.Inference, standard health and reflection. No
// gRPC type appears here.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "runtime/base/status.h"
#include "runtime/engine/engine.h"
#include "runtime/http/tls.h"
#include "runtime/serve/call.h"
#include "runtime/serve/served_model.h"
#include "runtime/text/model_text.h"

namespace lockstep {

struct GrpcServerOptions {
  std::string host = "127.0.0.1";
  int64_t port = 0;  // 0: a free one
  int max_receive_bytes = 16 << 20;
  int max_concurrent_streams = 256;  // per connection
  int64_t part_ms = 30'000;          // a client that takes no part of its answer is dropped
  TlsFiles tls;
};

class GrpcServer {
 public:
  virtual ~GrpcServer() = default;  // Shutdown(0)
  virtual int port() const = 0;
  // What grpc.health.v1 answers, for "" and for lockstep.v1.Inference.
  virtual void SetServing(bool serving) = 0;
  // Accepts no more calls; open ones may end within `grace_ms`, then they are cancelled.
  virtual void Shutdown(int64_t grace_ms) = 0;
};

// Starts serving. `access` (null: nobody is asked for a key; otherwise calls bring one as metadata
// "authorization: Bearer KEY" or are UNAUTHENTICATED), `engine` and `text` must outlive the server.
// A UsageError names host and port and their flags if they cannot be used.
StatusOr<std::unique_ptr<GrpcServer>> StartGrpcServer(const GrpcServerOptions& options,
                                                      const ServedModel& model,
                                                      const ModelText& text, Access* access,
                                                      Engine& engine);

}  // namespace lockstep
