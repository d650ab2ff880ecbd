// The seeds of the fuzz targets of what `lockstep plan` reads, and damaged copies, through what the
// fuzzers run.
#include <gtest/gtest.h>

#include "tests/fuzz/hardware_yaml_fuzz_body.h"
#include "tests/fuzz/measured_fuzz_body.h"
#include "tests/fuzz/replay.h"

namespace lockstep {
namespace {

constexpr int kDamagedCopies = 100;

TEST(PlannerFuzzSeeds, NeitherTheyNorDamagedCopiesDoHarm) {
  EXPECT_GE(testing::ReplaySeeds("hardware_yaml", kDamagedCopies, FuzzHardwareYaml), 3);
  EXPECT_GE(testing::ReplaySeeds("measured", kDamagedCopies, FuzzMeasured), 2);
}

TEST(PlannerFuzzSeeds, SoundSeedsAreAccepted) {
  const auto read = [](const char* target, const char* name) {
    return testing::ReadAll(testing::SeedPath(target, name));
  };
  const auto catalogue = ParseHardwareCatalogue(read("hardware_yaml", "catalogue.yaml"), "c");
  ASSERT_TRUE(catalogue.ok()) << catalogue.status();
  EXPECT_EQ(catalogue->presets.size(), 1u);
  EXPECT_TRUE(ParseHardware(read("hardware_yaml", "cluster.yaml"), "h", *catalogue).ok());
  EXPECT_TRUE(ParseMeasured(read("measured", "both.json"), "m").ok());
}

}  // namespace
}  // namespace lockstep
