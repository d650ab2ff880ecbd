// Ranks on this machine: one process starts the others by running its own command line again. What
// a spawned rank must know - its rank, where to join, the cluster secret - travels through an
// inherited pipe, never through arguments or environment, which other users can read.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "runtime/base/status.h"

namespace lockstep {

struct SpawnTicket {
  int rank = 0;
  int size = 0;
  std::string rendezvous;  // host:port
  std::string secret;
};

// The ticket of this process if another one spawned it: read once, every call gives the same. A
// process that has one must never spawn.
StatusOr<std::optional<SpawnTicket>> TakeSpawnTicket();

// The spawned ranks 1 .. size-1. They read nothing from the terminal, write to stderr only, get no
// Ctrl-C (this process tells them), and die with it.
class SpawnedRanks {
 public:
  // An error in a process that was spawned itself: whatever went wrong before, ranks never spawn
  // ranks. Call from the thread that lives as long as the process: the kernel ties the children's
  // lives to it.
  static StatusOr<std::unique_ptr<SpawnedRanks>> Start(int size, const std::string& rendezvous,
                                                       const std::string& secret);
  ~SpawnedRanks();
  SpawnedRanks(const SpawnedRanks&) = delete;
  SpawnedRanks& operator=(const SpawnedRanks&) = delete;

  // Until this call, a rank that ends ends this process too, with the rank's exit code and a
  // sentence that names it: nobody should wait for a rank that is gone. Afterwards the membership
  // watches over the ranks.
  void Joined();
  // After `lost` was lost: kills it if it still lives (it may be stopped, or hang), starts it and
  // whoever else has ended again, and watches as before Joined(). From the thread of Start(). An
  // error if the old process has not ended within `timeout_ms`.
  Status Restart(int lost, int64_t timeout_ms);
  // Waits for all to end, kills those that have not within `timeout_ms`, and leaves no zombie.
  void Finish(int64_t timeout_ms);

 private:
  struct Child {
    int rank = 0;
    std::string ticket;
    pid_t pid = 0;
    bool ended = false;
    int wait_status = 0;
  };
  SpawnedRanks() = default;
  static Status StartOne(Child* child);
  void StartWatching();
  void Watch(const std::stop_token& stop);
  // Reaps what has ended; returns how many still run.
  int Reap();
  void EndProcess(const Child& child);

  std::mutex mutex_;
  std::vector<Child> children_;
  std::vector<int> cpus_;  // that ranks may share out, before this one kept to its share
  std::atomic<bool> joined_{false};
  std::jthread watcher_;
};

}  // namespace lockstep
