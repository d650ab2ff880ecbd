// Stage links by gRPC: a stream from each stage to the next (proto/lockstep/v1/pipeline.proto). No
// gRPC type appears here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/engine/stage_link.h"
#include "transport/fabric.h"

namespace lockstep {

struct GrpcStageOptions {
  StagePeers peers;
  // The own addresses, at which the stage before may find this rank, best first. Those of the first
  // one's family count.
  std::vector<std::string> hosts;
  // A keyed digest (HMAC) under the session's key, which strangers do not have.
  std::function<Proof(std::span<const std::byte>)> sign;
  int64_t start_timeout_ms = 60'000;
};

class GrpcStageLink : public StageLink {
 public:
  // For who sends to this rank: "ipv4:HOST:PORT,HOST:PORT"; empty where nobody does.
  virtual const std::string& address() const = 0;
  // Connects to the next stage's address (empty where this rank sends to nobody) and waits until
  // the stage before has connected. Every rank calls it, before anything is sent.
  virtual Status Connect(const std::string& next) = 0;
};

// Listens on a free port.
StatusOr<std::unique_ptr<GrpcStageLink>> ListenForStage(GrpcStageOptions options);

}  // namespace lockstep
