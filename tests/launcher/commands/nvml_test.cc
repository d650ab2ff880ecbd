// What is read of a library as NVIDIA's, and what is said of it.
#include "launcher/commands/nvml.h"

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/launcher/commands/fake_nvml.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::FakeGpu;
using testing::FakeNvml;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const std::string kLibrary = LOCKSTEP_FAKE_NVML;

class Nvml : public ::testing::Test {
 protected:
  void SetUp() override {
    void* handle = dlopen(kLibrary.c_str(), RTLD_NOW);
    ASSERT_NE(handle, nullptr) << dlerror();
    void* function = dlsym(handle, "lockstep_fake_nvml");
    ASSERT_NE(function, nullptr);
    fake_ = reinterpret_cast<FakeNvml* (*)()>(function)();
    fake_->init_result = 0;
    fake_->gpus = {FakeGpu()};
  }
  FakeGpu& gpu() { return fake_->gpus[0]; }
  static GpuFindings Findings() { return ExamineGpus(ReadGpus(kLibrary), "580.95.05"); }

  FakeNvml* fake_ = nullptr;
};

TEST_F(Nvml, FactsAreThoseOfTheLibrary) {
  gpu() = {.name = "NVIDIA H200",
           .total = 150'000,
           .free = 140'000,
           .throttle = 1,
           .ecc = 1,
           .nvlinks = 4};
  fake_->gpus.push_back({.name = "NVIDIA GB10", .major = 12, .minor = 1, .persistence = 0});
  const GpuReport report = ReadGpus(kLibrary);
  EXPECT_TRUE(report.has_library);
  EXPECT_EQ(report.problem, "");
  EXPECT_EQ(report.driver, "580.95.05");
  EXPECT_EQ(report.cuda_version, 13000);
  ASSERT_EQ(report.gpus.size(), 2u);
  const GpuFacts& first = report.gpus[0];
  EXPECT_EQ(first.name, "NVIDIA H200");
  EXPECT_EQ(first.capability_major, 9);
  EXPECT_EQ(first.memory_bytes, 150'000u);
  EXPECT_EQ(first.free_bytes, 140'000u);
  EXPECT_EQ(first.megahertz, 1980u);
  EXPECT_EQ(first.memory_megahertz, 2619u);
  EXPECT_EQ(first.ecc, true);
  EXPECT_EQ(first.pcie_lanes, 16u);
  EXPECT_EQ(first.milliwatts, 100'000u);
  EXPECT_EQ(first.nvlinks, 4);
  EXPECT_FALSE(first.millijoules.has_value());  // a function that this library has not
  const GpuFacts& second = report.gpus[1];
  EXPECT_EQ(second.capability_minor, 1);
  EXPECT_FALSE(second.memory_bytes.has_value());
  EXPECT_FALSE(second.ecc.has_value());
  EXPECT_EQ(second.persistence, false);
  EXPECT_THAT(DescribeGpus(report),
              ElementsAre(AllOf(HasSubstr("GPU 0 (NVIDIA H200): compute capability 9.0"),
                                HasSubstr("ECC on"), HasSubstr("4 NVLinks")),
                          AllOf(HasSubstr("GPU 1 (NVIDIA GB10)"), HasSubstr("12.1"),
                                HasSubstr("the machine's memory"), HasSubstr("ECC ?"))));
}

TEST_F(Nvml, AGoodGpuHasNoFindings) {
  gpu().ecc = 1;
  gpu().throttle = ThrottleReason::kIdle;
  gpu().generation = 1;  // an idle link rests
  const GpuFindings findings = Findings();
  EXPECT_THAT(findings.faults, IsEmpty());
  EXPECT_THAT(findings.notes, IsEmpty());
}

TEST_F(Nvml, EveryFaultComesWithWhatToDo) {
  const auto fault = [&](const FakeGpu& one, const std::string& what, const std::string& remedy) {
    fake_->gpus = {one};
    EXPECT_THAT(Findings().faults, ElementsAre(AllOf(HasSubstr(what), HasSubstr(remedy))));
  };
  using R = ThrottleReason;
  fault({.megahertz = 900, .throttle = R::kHeat, .celsius = 88}, "for heat (88 °C, 900 MHz of 1980",
        "fans");
  fault({.throttle = R::kHardware | R::kHardwareHeat}, "for heat", "fans");
  fault({.throttle = R::kHardware | R::kPowerBrake}, "the power supply", "cables");
  fault({.throttle = R::kHardware}, "its own circuits", "nvidia-smi -q -d PERFORMANCE");
  fault({.throttle = R::kClocksSet}, "set the clocks", "nvidia-smi -rgc");
  fault({.ecc = 1, .uncorrected = 3}, "3 errors of memory", "replaced");
  fault({.lanes = 8}, "8 of 16 PCIe lanes", "slot");
  fault({.generation = 3}, "generation 3, not 5", "BIOS");
}

TEST_F(Nvml, WhatIsNoFaultIsANote) {
  const auto note = [&](const FakeGpu& one, const std::string& what) {
    fake_->gpus = {one};
    const GpuFindings findings = Findings();
    EXPECT_THAT(findings.faults, IsEmpty());
    EXPECT_THAT(findings.notes, ElementsAre(HasSubstr(what)));
  };
  note({.ecc = 0}, "nvidia-smi -e 1");
  note({.throttle = ThrottleReason::kPowerLimit}, "power limit of 700 W");
  note({.persistence = 0}, "nvidia-persistenced");
  note({.major = 8, .minor = 6}, "kernels are for 9.0 and later");
  note({.total = uint64_t{100} << 30, .free = uint64_t{60} << 30}, "40 GiB of the 100 GiB");
}

TEST_F(Nvml, ALibraryThatCannotSpeakSaysWhy) {
  const auto problem = [&](int result) {
    fake_->init_result = result;
    return ReadGpus(kLibrary).problem;
  };
  EXPECT_THAT(problem(9), HasSubstr("modprobe nvidia"));
  EXPECT_THAT(problem(18), HasSubstr("restart the machine"));
  EXPECT_THAT(problem(999), AllOf(HasSubstr("error 999"), HasSubstr("nvidia-smi")));
  EXPECT_THAT(Findings().faults, ElementsAre(HasSubstr("error 999")));
  // One without any of the functions.
  EXPECT_THAT(ReadGpus("libm.so.6").problem, HasSubstr("nvidia-smi"));
}

TEST_F(Nvml, NoLibraryIsNoFaultUnlessThereIsADriver) {
  const GpuReport none = ReadGpus("libthere-is-none.so.1");
  EXPECT_FALSE(none.has_library);
  EXPECT_TRUE(DescribeGpus(none).empty());
  const GpuFindings without = ExamineGpus(none, "");
  EXPECT_TRUE(without.faults.empty() && without.notes.empty());
  EXPECT_THAT(ExamineGpus(none, "580.95.05").notes, ElementsAre(HasSubstr("libnvidia-compute")));
}

TEST_F(Nvml, ADriverThatHangsHoldsUpNobody) {
  fake_->hangs = true;
  const GpuReport report = ReadGpus(kLibrary, 20);
  fake_->hangs = false;
  EXPECT_TRUE(report.has_library);
  EXPECT_THAT(report.problem, AllOf(HasSubstr("within 20 ms"), HasSubstr("xid")));
}

}  // namespace
}  // namespace lockstep
