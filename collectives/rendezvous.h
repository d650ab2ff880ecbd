// The ranks find each other: rank 0 listens, the others come, prove the secret and say who they
// are; rank 0 compares, and either all are in or all learn why not.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "collectives/bootstrap.h"
#include "collectives/handshake.h"
#include "runtime/base/clock.h"
#include "runtime/base/status.h"
#include "transport/socket.h"

namespace lockstep {

struct RendezvousOptions {
  std::string secret;
  Hello self;
  int64_t start_timeout_ms = 60'000;
};

struct Joined {
  Challenge session{};
  std::vector<Member> members;        // by rank
  std::vector<UniqueFd> connections;  // rank 0: to rank r at [r]; the others: to rank 0 at [0]
};

// "rank 1 (spark-2, pid 4711)"
std::string NameOf(uint32_t rank, const std::string& host, uint32_t pid);

// Rank 0. Errors: a rank differs or comes twice (usage), ranks are missing when the time is up
// (peer lost, they are named).
StatusOr<Joined> GatherRanks(UniqueFd listener, const RendezvousOptions& options);
// The other ranks. `candidates` are rank 0's possible addresses, tried in turn until one answers.
StatusOr<Joined> JoinRankZero(const std::vector<Endpoint>& candidates,
                              const RendezvousOptions& options);

// Under a process manager that speaks PMIx (mpirun): one text of rank 0 for all ranks. Rank 0
// passes it, the others pass "". Collective. The session lives until the process ends its work;
// destroy it only when all went well.
class ProcessManager {
 public:
  virtual ~ProcessManager() = default;
  virtual StatusOr<std::string> ShareFromRankZero(const std::string& text, int64_t timeout_ms) = 0;
  // Ends the session in order; never after a rank was lost.
  virtual void Finish() = 0;
};
// A usage error where PMIx is not built.
StatusOr<std::unique_ptr<ProcessManager>> ConnectProcessManager(int64_t timeout_ms);

}  // namespace lockstep
