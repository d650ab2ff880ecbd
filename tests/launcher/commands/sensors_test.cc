#include "launcher/commands/sensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/support/temporary.h"

namespace lockstep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint64_t kMiB = uint64_t{1} << 20;

class Sensors : public ::testing::Test {
 protected:
  void Put(const std::string& path, const std::string& text) {
    temporary_.Write(path, text + "\n");
  }
  testing::TemporaryDirectory temporary_;
};

TEST_F(Sensors, AreReadWhereLinuxHasThem) {
  Put("/sys/class/thermal/thermal_zone0/temp", "41000");
  Put("/sys/class/thermal/thermal_zone0/type", "acpitz");
  Put("/sys/class/thermal/thermal_zone0/trip_point_0_type", "passive");
  Put("/sys/class/thermal/thermal_zone0/trip_point_0_temp", "42000");
  Put("/sys/class/thermal/thermal_zone0/trip_point_1_type", "critical");
  Put("/sys/class/thermal/thermal_zone0/trip_point_1_temp", "43000");
  Put("/sys/class/thermal/cooling_device0/type", "Fan");
  Put("/sys/class/hwmon/hwmon1/name", "k10temp");
  Put("/sys/class/hwmon/hwmon1/temp1_input", "71250");
  Put("/sys/class/hwmon/hwmon1/temp1_label", "Tctl");
  Put("/sys/class/hwmon/hwmon1/temp1_crit", "95000");
  Put("/sys/class/hwmon/hwmon1/temp2_input", "255000");  // not wired
  Put("/sys/class/hwmon/hwmon1/temp3_input", "-273000");
  Put("/sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq", "3100000");
  Put("/sys/devices/system/cpu/cpufreq/policy1/scaling_cur_freq", "1400000");
  Put("/sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "3");
  Put("/sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count", "4");
  const SensorReading reading = ReadSensors(temporary_.path());
  ASSERT_TRUE(reading.hottest && reading.nearest);
  EXPECT_EQ(reading.hottest->celsius, 71.25);
  EXPECT_EQ(reading.hottest->sensor, "k10temp Tctl");
  EXPECT_EQ(reading.hottest->critical_celsius, 95.0);
  EXPECT_EQ(reading.nearest->sensor, "acpitz");
  EXPECT_EQ(reading.nearest->critical_celsius, 43.0);
  EXPECT_EQ(reading.megahertz, 1400.0);
  EXPECT_EQ(reading.throttles, 7u);
}

TEST_F(Sensors, WhatIsNotThereIsNotKnown) {
  const SensorReading reading = ReadSensors(temporary_.path());
  EXPECT_FALSE(reading.hottest || reading.nearest || reading.megahertz || reading.throttles);
}

TEST(HealthRecord, ComparesMemoryWithTheLastWarmSampleAndCountsThrottlingFromTheFirst) {
  HealthRecord record;
  record.Add(100 * kMiB, {.hottest = Temperature{"a", 50, {}}, .megahertz = 3000, .throttles = 7},
             true);
  record.Add(300 * kMiB, {.hottest = Temperature{"a", 80, {}}, .megahertz = 2000, .throttles = 7},
             true);
  record.Add(500 * kMiB,
             {.hottest = Temperature{"b", 70, 75},
              .nearest = Temperature{"b", 70, 75},
              .megahertz = 2500,
              .throttles = 9},
             false);
  record.Add(400 * kMiB, {}, false);
  const RankHealth& health = record.health();
  EXPECT_EQ(health.samples, 4u);
  EXPECT_EQ(health.resident_first, 300 * kMiB);
  EXPECT_EQ(health.resident_last, 400 * kMiB);
  EXPECT_EQ(health.resident_most, 500 * kMiB);
  ASSERT_TRUE(health.worst.hottest && health.worst.nearest);
  EXPECT_EQ(health.worst.hottest->celsius, 80.0);
  EXPECT_EQ(health.worst.hottest->sensor, "a");
  EXPECT_EQ(health.worst.nearest->sensor, "b");
  EXPECT_EQ(health.worst.megahertz, 2000.0);
  EXPECT_EQ(health.throttles, 2u);
}

TEST(ExamineHealth, NamesTheRankThatGrewOrGotTooHot) {
  RankHealth health{.samples = 9, .resident_first = 100 * kMiB, .resident_last = 164 * kMiB};
  EXPECT_THAT(ExamineHealth("rank 1", health, 64 * kMiB), IsEmpty());
  health.resident_last += 1;
  EXPECT_THAT(ExamineHealth("rank 1", health, 64 * kMiB), ElementsAre(HasSubstr("rank 1 grew")));
  health.resident_last = health.resident_first;
  health.throttles = 5;
  EXPECT_THAT(ExamineHealth("rank 1", health, 0), ElementsAre(HasSubstr("rank 1 slowed itself")));
  health.throttles = 0;
  // Another is hotter, and far from what is critical there.
  health.worst.hottest = Temperature{"edge", 96, 110};
  health.worst.nearest = Temperature{"Tctl", 94, 95};
  EXPECT_THAT(ExamineHealth("rank 1", health, 0), ElementsAre(HasSubstr("Tctl was at 94")));
  health.worst.nearest->celsius = 93;
  EXPECT_THAT(ExamineHealth("rank 1", health, 0), IsEmpty());
}

}  // namespace
}  // namespace lockstep
