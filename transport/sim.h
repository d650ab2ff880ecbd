// A mesh of links inside one process, for tests: a virtual clock, latencies drawn from a seed, and
// nothing that depends on how threads are scheduled. The same seed and the same calls of the ranks
// give the same deliveries in the same order at the same virtual times.
//
// The clock stands still while any rank may still act. It goes on to the next event (bytes have
// left, bytes have arrived, an end has been noticed) only when every rank waits: it sleeps in
// WaitReadable, or has polled many times in a row without news and without asking for anything.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/base/status.h"
#include "transport/fabric.h"

namespace lockstep {

struct SimOptions {
  int ranks = 2;
  size_t window_bytes = 0;
  uint64_t seed = 1;
  // Puts show the peer the sender's own window (as shm does) in place of a copy (as tcp does).
  bool in_place = false;
  int64_t latency_ns = 1'000;  // of most deliveries; by the seed up to twice, now and then 20 times
  int64_t bytes_per_us = 10'000;
  // A rank that calls nothing for so long of real time, because it is lost, computes or was never
  // started, does not hold the clock any longer.
  int64_t stall_ms = 50;
};

struct SimNetwork {
  std::vector<Mesh> meshes;  // by rank; the links of a rank belong to one thread
  std::shared_ptr<const Clock> clock;
};

StatusOr<SimNetwork> MakeSimNetwork(const SimOptions& options);

}  // namespace lockstep
