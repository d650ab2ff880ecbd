// What the backend says when a device cannot be used or fails, and what it takes of its memory.
#include "runtime/kernels/cuda/cuda_device.h"

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/kernels/cuda_emulation/emulation.h"
#include "tests/runtime/kernels/quantized_matrices.h"

namespace lockstep::kernels {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class CudaDevice : public ::testing::Test {
 protected:
  ~CudaDevice() override { emulation::TheMachine() = {}; }
  std::string OpenError(int device = 0) {
    const Status status = MakeCudaBackend(device, Precision::kExact).status();
    EXPECT_FALSE(status.ok());
    EXPECT_EQ(KindOf(status), ErrorKind::kUsage);
    return MessageOf(status);
  }

  emulation::Machine& machine_ = emulation::TheMachine();
  ThreadPool one_{1};
  Queue queue_{&one_};
};

TEST_F(CudaDevice, IsRefusedWithWhatIsMissing) {
  machine_.fail["cudaGetDeviceCount"] = cudaErrorInsufficientDriver;
  EXPECT_THAT(OpenError(), AllOf(HasSubstr("cuda:0"), HasSubstr("driver 580 or later")));
  machine_.fail["cudaGetDeviceCount"] = cudaErrorSystemNotReady;
  EXPECT_THAT(OpenError(), HasSubstr("nvidia-fabricmanager"));
  machine_ = {};
  machine_.devices = 1;
  EXPECT_THAT(OpenError(3), AllOf(HasSubstr("cuda:3"), HasSubstr("there is one GPU")));
  machine_ = {};
  machine_.major = 8;
  machine_.minor = 6;
  EXPECT_THAT(OpenError(), AllOf(HasSubstr("capability 8.6"), HasSubstr("9.0 or later")));
  machine_ = {};
  machine_.reads_host_memory = false;
  EXPECT_THAT(OpenError(), AllOf(HasSubstr("ordinary memory of the host"), HasSubstr("HMM")));
  machine_ = {};
  machine_.memory_bytes = 1 << 20;
  EXPECT_THAT(OpenError(), AllOf(HasSubstr("cannot allocate 64 MiB for attention"),
                                 HasSubstr("of 1 MiB are free"), HasSubstr("use more ranks")));
}

TEST_F(CudaDevice, IsNamedByItsCapabilityInEitherPrecision) {
  machine_.major = 12;
  machine_.minor = 1;
  for (const Precision precision : {Precision::kExact, Precision::kFast})
    EXPECT_EQ(MakeCudaBackend(1, precision).value()->name(), "cuda/sm_121");
}

TEST_F(CudaDevice, TakesWhatItPlansAndGivesAllBack) {
  ASSERT_EQ(emulation::TakenBytes(), 0u);
  const uint64_t live = Buffer::LiveBytes();
  {
    const auto backend = MakeCudaBackend(0, Precision::kExact).value();
    RandomRows random(7);
    HostMatrix source = random.Make(WeightFormat::Of(Encoding::kQ6_K), 3, 5, 9 * kBlockWeights, 2);
    const uint64_t work = backend->WorkBytes(source), planned = backend->PackedBytes(source);
    EXPECT_EQ(emulation::TakenBytes(), work);
    const auto packed = backend->Pack(std::move(source)).value();
    EXPECT_EQ(packed->bytes(), planned);
    EXPECT_EQ(emulation::TakenBytes(), work + planned);
    const Buffer shared = backend->Allocate(1000, "the test").value();
    EXPECT_EQ(shared.bytes(), 1000u);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(shared.data()) % 64, 0u);
    for (uint64_t i = 0; i < shared.bytes(); ++i) ASSERT_EQ(shared.data()[i], std::byte{0});
    EXPECT_EQ(Buffer::LiveBytes(), live + 1000);
    const auto memory = backend->memory().value();
    EXPECT_EQ(memory.total_bytes - memory.free_bytes, work + planned + 1000);
    EXPECT_FALSE(memory.of_host);
  }
  EXPECT_EQ(emulation::TakenBytes(), 0u);
  EXPECT_EQ(Buffer::LiveBytes(), live);
}

TEST_F(CudaDevice, SaysWhatTookTooMuchMemory) {
  const auto backend = MakeCudaBackend(0, Precision::kExact).value();
  const Status status = backend->Allocate(uint64_t{16} << 30, "the KV cache").status();
  EXPECT_THAT(MessageOf(status), AllOf(HasSubstr("16384 MiB for the KV cache on cuda:0"),
                                       HasSubstr("--max-model-len")));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(CudaDevice, FaultsOfOpsComeWithFinishAndOnce) {
  const auto backend = MakeCudaBackend(0, Precision::kExact).value();
  std::vector<float> x(8, 1.0f), y(4);
  machine_.fail["cudaLaunchKernelEx"] = cudaErrorNoKernelImageForDevice;
  backend->SiluMul(queue_, x.data(), 1, 4, y.data());
  machine_.fail.clear();
  const Status fault = backend->Finish(queue_);
  EXPECT_THAT(MessageOf(fault), AllOf(HasSubstr("cuda:0 (sm_90)"), HasSubstr("silu_mul"),
                                      HasSubstr("no kernels for this GPU")));
  EXPECT_EQ(KindOf(fault), ErrorKind::kInternal);
  EXPECT_TRUE(backend->Finish(queue_).ok());
  machine_.fail["cudaStreamQuery"] = cudaErrorECCUncorrectable;
  EXPECT_THAT(MessageOf(backend->Finish(queue_)),
              AllOf(HasSubstr("cudaErrorECCUncorrectable"), HasSubstr("nvidia-smi -q -d ECC")));
  machine_.fail["cudaStreamQuery"] = cudaErrorIllegalAddress;
  EXPECT_THAT(MessageOf(backend->Finish(queue_)), HasSubstr("cudaErrorIllegalAddress"));
  machine_.fail.clear();
}

TEST_F(CudaDevice, ThatHangsIsAFaultAfterADeadline) {
  const auto device = cuda::Device::Open(0).value();
  machine_.hangs = true;
  EXPECT_THAT(MessageOf(device->Wait(1'000'000)), HasSubstr("does not come to an end"));
  // The default would be longer than a test may take.
  EXPECT_THAT(MessageOf(device->Wait(int64_t{3600} * 1'000'000'000)),
              HasSubstr("does not come to an end"));
  machine_.hangs = false;
  EXPECT_TRUE(device->Wait().ok());
}

}  // namespace
}  // namespace lockstep::kernels
