#include "launcher/commands/sensors.h"

#include <algorithm>
#include <charconv>
#include <chrono>

#include "absl/strings/str_format.h"
#include "launcher/progress.h"
#include "runtime/base/clock.h"
#include "runtime/base/os.h"

namespace lockstep {
namespace {

// Sensors that are not wired say 0, -273 or 255 °C.
constexpr double kColdest = 1, kHottest = 150;
// Processors slow down a few degrees before they would be damaged.
constexpr double kNearCritical = 2;

std::optional<int64_t> NumberIn(const std::string& root, const std::string& file) {
  const std::string text = os::SystemText(root, file);
  int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

std::optional<double> CelsiusIn(const std::string& root, const std::string& file) {
  const std::optional<int64_t> milli = NumberIn(root, file);
  if (!milli.has_value()) return std::nullopt;
  const double celsius = static_cast<double>(*milli) / 1000;
  if (celsius < kColdest || celsius > kHottest) return std::nullopt;
  return celsius;
}

double Margin(const Temperature& one) { return *one.critical_celsius - one.celsius; }

void Take(const Temperature& one, SensorReading* reading) {
  if (!reading->hottest.has_value() || one.celsius > reading->hottest->celsius)
    reading->hottest = one;
  if (one.critical_celsius.has_value() &&
      (!reading->nearest.has_value() || Margin(one) < Margin(*reading->nearest)))
    reading->nearest = one;
}

// Of a thermal zone.
std::optional<double> CriticalOf(const std::string& root, const std::string& folder) {
  for (const std::string& file : os::SystemNames(root, folder)) {
    if (!file.starts_with("trip_point_") || !file.ends_with("_type")) continue;
    if (os::SystemText(root, folder + "/" + file) != "critical") continue;
    const std::string point = file.substr(0, file.size() - std::string("_type").size());
    return CelsiusIn(root, folder + "/" + point + "_temp");
  }
  return std::nullopt;
}

void ReadTemperatures(const std::string& root, SensorReading* reading) {
  for (const std::string& chip : os::SystemNames(root, "/sys/class/hwmon")) {
    const std::string folder = "/sys/class/hwmon/" + chip;
    const std::string driver = os::SystemText(root, folder + "/name");
    for (const std::string& file : os::SystemNames(root, folder)) {
      if (!file.starts_with("temp") || !file.ends_with("_input")) continue;
      const std::string sensor = file.substr(0, file.size() - std::string("_input").size());
      const std::string label = os::SystemText(root, folder + "/" + sensor + "_label");
      const std::optional<double> celsius = CelsiusIn(root, folder + "/" + file);
      if (!celsius.has_value()) continue;
      Take({driver + " " + (label.empty() ? sensor : label), *celsius,
            CelsiusIn(root, folder + "/" + sensor + "_crit")},
           reading);
    }
  }
  for (const std::string& zone : os::SystemNames(root, "/sys/class/thermal")) {
    if (!zone.starts_with("thermal_zone")) continue;
    const std::string folder = "/sys/class/thermal/" + zone;
    const std::optional<double> celsius = CelsiusIn(root, folder + "/temp");
    if (!celsius.has_value()) continue;
    Take({os::SystemText(root, folder + "/type"), *celsius, CriticalOf(root, folder)}, reading);
  }
}

}  // namespace

SensorReading ReadSensors(const std::string& root) {
  SensorReading reading;
  ReadTemperatures(root, &reading);
  for (const std::string& policy : os::SystemNames(root, "/sys/devices/system/cpu/cpufreq")) {
    const std::optional<int64_t> kilohertz =
        NumberIn(root, "/sys/devices/system/cpu/cpufreq/" + policy + "/scaling_cur_freq");
    if (!kilohertz.has_value()) continue;
    const double megahertz = static_cast<double>(*kilohertz) / 1000;
    reading.megahertz = std::min(reading.megahertz.value_or(megahertz), megahertz);
  }
  for (const std::string& cpu : os::SystemNames(root, "/sys/devices/system/cpu")) {
    const std::optional<int64_t> count =
        NumberIn(root, "/sys/devices/system/cpu/" + cpu + "/thermal_throttle/core_throttle_count");
    if (count.value_or(-1) < 0) continue;
    reading.throttles = reading.throttles.value_or(0) + static_cast<uint64_t>(*count);
  }
  return reading;
}

void HealthRecord::Add(uint64_t resident_bytes, const SensorReading& reading, bool warm) {
  ++health_.samples;
  if (warm || health_.samples == 1) health_.resident_first = resident_bytes;
  health_.resident_last = resident_bytes;
  health_.resident_most = std::max(health_.resident_most, resident_bytes);
  for (const std::optional<Temperature>& one : {reading.hottest, reading.nearest}) {
    if (one.has_value()) Take(*one, &health_.worst);
  }
  if (reading.megahertz.has_value()) {
    std::optional<double>& slowest = health_.worst.megahertz;
    slowest = std::min(slowest.value_or(*reading.megahertz), *reading.megahertz);
  }
  if (!reading.throttles.has_value()) return;
  if (!throttles_before_.has_value()) throttles_before_ = reading.throttles;
  health_.throttles = *reading.throttles - std::min(*throttles_before_, *reading.throttles);
}

HealthWatch::HealthWatch(int64_t period_ms, int64_t warm_up_ms)
    : warm_until_ns_(NowNs() + warm_up_ms * 1'000'000) {
  thread_ = std::thread([this, period_ms] {
    std::unique_lock lock(mutex_);
    while (!stop_) {
      Sample();
      stopped_.wait_for(lock, std::chrono::milliseconds(period_ms), [this] { return stop_; });
    }
  });
}

HealthWatch::~HealthWatch() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    stopped_.notify_all();
  }
  thread_.join();
}

// With mutex_.
void HealthWatch::Sample() {
  record_.Add(os::ResidentBytes(), ReadSensors(""), NowNs() < warm_until_ns_);
}

RankHealth HealthWatch::Now() {
  const std::lock_guard lock(mutex_);
  Sample();
  return record_.health();
}

std::vector<std::string> ExamineHealth(const std::string& name, const RankHealth& health,
                                       uint64_t growth_bytes) {
  std::vector<std::string> findings;
  if (health.resident_last > health.resident_first + growth_bytes) {
    findings.push_back(
        absl::StrFormat("%s grew from %s to %s, by more than %s: it may run out of memory in days",
                        name, FormatBytes(health.resident_first), FormatBytes(health.resident_last),
                        FormatBytes(growth_bytes)));
  }
  if (health.throttles.value_or(0) > 0) {
    findings.push_back(
        absl::StrFormat("the processor of %s slowed itself down %d times because of heat: look at "
                        "its fans, dust and place, or use fewer --threads",
                        name, *health.throttles));
  }
  const std::optional<Temperature>& nearest = health.worst.nearest;
  if (nearest.has_value() && Margin(*nearest) < kNearCritical) {
    findings.push_back(absl::StrFormat(
        "%s: %s was at %.0f °C, and %.0f °C is critical: look at its fans, dust and place", name,
        nearest->sensor, nearest->celsius, *nearest->critical_celsius));
  }
  return findings;
}

}  // namespace lockstep
