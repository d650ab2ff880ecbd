// What a cluster does, for whoever looks at it: samples once a second what the engine and the ranks
// have counted, keeps five minutes of it, and makes rates and times per step of the differences.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "collectives/bootstrap.h"
#include "collectives/rank_meter.h"
#include "runtime/engine/engine.h"
#include "runtime/model/model.h"

namespace lockstep {

struct RankFacts {
  RankInfo info;
  RankNews news;
};

struct ClusterSample {
  int64_t at_ns = 0;
  EngineCounts counts;
  std::vector<RankFacts> ranks;  // none while the group is formed again
};

// Of one rank, in seconds of a decode step.
struct RankTimes {
  double compute = 0;
  double exchange = 0;  // with waiting for the others
  double rest = 0;      // the plan, sampling, publishing; elsewhere than on rank 0: waiting for it
  // How much longer the rank that waits most waits than this one does. The largest is that of the
  // rank for which the others wait.
  double skew = 0;
  double read_bytes = 0;  // of weights, which is what it computes with
};

// Decode steps of up to ten seconds, the last ones that there were.
struct DecodeTimes {
  double step = 0;    // seconds of one
  double tokens = 0;  // of one: the requests that decoded together
  double age = 0;     // seconds since then
  std::vector<RankTimes> ranks;
  int waited_for =
      -1;  // the rank with the largest skew; -1: there is one rank, or nothing is known
};

struct Rates {
  double now = 0;  // of the last five seconds; all per second
  double minute = 0;
  double five_minutes = 0;
};

struct ClusterView {
  static constexpr int64_t kKvBlockTokens = kBlockTokens;
  Status readiness;
  bool circuit_open = false;  // groups of ranks were lost too often: ClusterWatch::SetCircuitOpen
  double uptime = 0;          // seconds
  EngineLoad load;
  EngineCounts counts;
  Rates generated, prompt;         // tokens; a prompt's count when it gave its first one
  std::vector<double> per_second;  // generated tokens, oldest first, a sample each
  std::optional<DecodeTimes> decode;
  std::vector<RankFacts> ranks;
};

// The samples of five minutes, and what follows from them.
class ClusterHistory {
 public:
  static constexpr size_t kSamples = 301;

  void Add(ClusterSample sample);
  // The part of `view` that follows from samples. Without any, nothing.
  void Describe(ClusterView* view) const;

 private:
  Rates RatesOf(uint64_t EngineCounts::*tokens) const;
  std::optional<DecodeTimes> Decode() const;

  std::deque<ClusterSample> samples_;
};

class ClusterWatch {
 public:
  using Source = std::function<std::vector<RankFacts>()>;
  // `engine` outlives it. Starts a thread.
  explicit ClusterWatch(const Engine& engine);
  ~ClusterWatch();
  ClusterWatch(const ClusterWatch&) = delete;
  ClusterWatch& operator=(const ClusterWatch&) = delete;

  // Who tells about the ranks; empty: nobody. The one before is not asked any more when it returns.
  void SetSource(Source source);
  // From then on, until it says no, views say so. Any thread.
  void SetCircuitOpen(bool open) { circuit_open_ = open; }
  // Any thread.
  ClusterView View() const;

 private:
  void Run();
  ClusterSample SampleLocked() const;

  const Engine& engine_;
  const int64_t began_ns_;
  mutable std::mutex mutex_;
  std::condition_variable stopped_;
  Source source_;
  std::atomic<bool> circuit_open_{false};
  ClusterHistory history_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace lockstep
