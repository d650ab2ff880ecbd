// A mesh of links inside one process, for tests and simulations: a virtual clock, latencies drawn
// from a seed, and nothing that depends on how threads are scheduled. The same seed and the same
// calls of the ranks give the same deliveries in the same order at the same virtual times.
//
// The clock stands still while any rank may still act. It goes on to the next event (bytes have
// left, bytes have arrived, an end has been noticed) only when every rank waits: it sleeps in
// WaitReadable, or has polled many times in a row without news and without asking for anything.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
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
  // Of most deliveries; by the seed up to `jitter` of it more, and now and then, if `stragglers`,
  // 20 times that.
  int64_t latency_ns = 1'000;
  double jitter = 1;
  bool stragglers = true;
  int64_t bytes_per_us = 10'000;
  // A rank that calls nothing for so long of real time, because it is lost, computes or was never
  // started, does not hold the clock any longer.
  int64_t stall_ms = 50;
  // The clock goes on by SimNetwork::advance alone: one thread drives all ranks and knows when they
  // wait.
  bool driven = false;
};

// What an advance led to.
struct SimEvent {
  bool happened = false;  // false: nothing was due
  bool arrived = false;   // bytes of `from`, at `to`
  int from = 0, to = 0;
};

struct SimNetwork {
  std::vector<Mesh> meshes;  // by rank; the links of a rank belong to one thread
  std::shared_ptr<const Clock> clock;
  // If driven: lets the next event happen that is due by then, at its time; if there is none, the
  // clock goes on to then.
  std::function<SimEvent(int64_t until_ns)> advance;
};

StatusOr<SimNetwork> MakeSimNetwork(const SimOptions& options);

}  // namespace lockstep
