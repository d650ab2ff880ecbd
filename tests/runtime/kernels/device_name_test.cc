// What a rank computes on, by the words for it.
#include "runtime/kernels/device_name.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "runtime/kernels/backend.h"
#include "runtime/kernels/roofline.h"

namespace lockstep::kernels {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string NamedBy(const char* text) {
  const StatusOr<DeviceName> device = ParseDevice(text, "--device");
  return device.ok() ? device->Text() : MessageOf(device.status());
}

TEST(DeviceName, IsTheProcessorOrAGpuByItsNumber) {
  EXPECT_EQ(NamedBy("cpu"), "cpu");
  EXPECT_EQ(NamedBy("cuda:0"), "cuda:0");
  EXPECT_EQ(NamedBy("cuda:17"), "cuda:17");
  for (const char* wrong : {"", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:1x", "cuda:1024", "CUDA:0",
                            "cuda: 1", "cuda:99999999999", "cpu:0"}) {
    EXPECT_THAT(NamedBy(wrong), AllOf(HasSubstr("--device"), HasSubstr("cuda:N"))) << wrong;
  }
}

TEST(DeviceName, OfAListIsTheRanksOwn) {
  const auto of = [](const char* text, int rank, int ranks) {
    const auto device = DeviceOfRank(text, rank, ranks, "--device");
    return device.ok() ? device->Text() : MessageOf(device.status());
  };
  EXPECT_EQ(of("cuda:1", 2, 3), "cuda:1");
  EXPECT_EQ(of("cuda:1,cpu,cuda:0", 0, 3), "cuda:1");
  EXPECT_EQ(of("cuda:1,cpu,cuda:0", 1, 3), "cpu");
  EXPECT_EQ(of("cuda:1,cpu,cuda:0", 2, 3), "cuda:0");
  EXPECT_THAT(of("cuda:0,cuda:1", 0, 3), HasSubstr("2 devices for 3 ranks"));
  // Another rank's is looked at as well.
  EXPECT_THAT(of("cuda:0,tpu", 0, 2), HasSubstr("'tpu'"));
  EXPECT_THAT(of("cuda:0,", 0, 2), HasSubstr("''"));
}

TEST(Backends, OfAnotherDeviceHaveNoKernelsOfTheProcessor) {
  EXPECT_EQ(MakeBackendOn({}, "ref", Precision::kFast).value()->name(), "ref");
  const auto both = MakeBackendOn({.is_cuda = true, .ordinal = 3}, "cpu", Precision::kFast);
  ASSERT_FALSE(both.ok());
  EXPECT_THAT(MessageOf(both.status()),
              AllOf(HasSubstr("--kernels cpu"), HasSubstr("cuda:3"), HasSubstr("leave one out")));
}

TEST(Roofline, OfADeviceIsNotMeasuredByThreadsOfTheHost) {
  ThreadPool pool(1);
  const PeakArithmetic peak = MeasurePeak({.instruction = "mma", .run = nullptr}, pool);
  EXPECT_EQ(peak.instruction, "mma");
  EXPECT_EQ(peak.gop_per_s, 0);
}

}  // namespace
}  // namespace lockstep::kernels
