// How warm this machine is and whether it slows itself down, as far as its system says; and what a
// process went through in the hours in which it was watched.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace lockstep {

struct Temperature {
  std::string sensor;
  double celsius = 0;
  std::optional<double> critical_celsius;  // at which the machine acts, if it says so
};

// Nothing: not known here. macOS tells none of it to programs without special rights.
struct SensorReading {
  std::optional<Temperature> hottest;  // of all sensors that have a sound value
  std::optional<Temperature> nearest;  // to its critical value, of those that have one
  std::optional<double> megahertz;     // of the slowest clock domain of the processor
  std::optional<uint64_t> throttles;   // since the start of the system: of all cores
};

// `root`: "" for this machine; a folder with a /sys in tests.
SensorReading ReadSensors(const std::string& root);

// What a rank's process and its machine went through.
struct RankHealth {
  uint64_t samples = 0;
  // Of the process. The first one counts once the caches of the first requests are warm.
  uint64_t resident_first = 0, resident_last = 0, resident_most = 0;
  SensorReading worst;  // the highest temperatures and the lowest clock of all readings
  std::optional<uint64_t> throttles;  // during the watch
};

// Adds samples up. Pure.
class HealthRecord {
 public:
  // `warm`: resident_first is this sample's.
  void Add(uint64_t resident_bytes, const SensorReading& reading, bool warm);
  const RankHealth& health() const { return health_; }

 private:
  RankHealth health_;
  std::optional<uint64_t> throttles_before_;
};

// Samples this process and its machine every `period_ms` on a thread of its own. For the first
// `warm_up_ms` every sample counts as the first one.
class HealthWatch {
 public:
  HealthWatch(int64_t period_ms, int64_t warm_up_ms);
  ~HealthWatch();
  HealthWatch(const HealthWatch&) = delete;
  HealthWatch& operator=(const HealthWatch&) = delete;
  // With a sample of now. Any thread.
  RankHealth Now();

 private:
  void Sample();

  const int64_t warm_until_ns_;
  std::mutex mutex_;
  std::condition_variable stopped_;
  bool stop_ = false;
  HealthRecord record_;
  std::thread thread_;
};

// What is wrong with it; `name` is the rank's. At most `growth_bytes` of growth are right.
std::vector<std::string> ExamineHealth(const std::string& name, const RankHealth& health,
                                       uint64_t growth_bytes);

}  // namespace lockstep
