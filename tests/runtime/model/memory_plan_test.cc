// The memory that is planned before anything is read is the memory that is then held.
#include <gtest/gtest.h>

#include <map>
#include <mutex>
#include <string>

#include "runtime/kernels/backend.h"
#include "runtime/model/model.h"
#include "runtime/tensor/buffer.h"
#include "tests/support/golden.h"
#include "tests/support/ranks.h"

namespace lockstep {
namespace {

struct Case {
  std::string model;
  int ranks = 1;
  std::string backend = "cpu";
  kernels::Precision precision = kernels::Precision::kFast;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.model << ", " << c.backend; }

class MemoryPlanOf : public ::testing::TestWithParam<Case> {};

// Norms and biases are small and live outside of buffers: what the plan may be above them.
constexpr double kVectors = 0.05;

TEST_P(MemoryPlanOf, IsWhatTheRanksHold) {
  const Case& param = GetParam();
  const ModelLimits limits = {.max_rows = 8, .max_outputs = 4, .max_model_len = 64, .kv_blocks = 4};
  const uint64_t before = Buffer::LiveBytes();
  std::mutex mutex;
  uint64_t planned = 0, held = 0, weights = 0;
  testing::RunRanks(param.ranks, "tcp", [&](Membership&, Group& group) {
    const auto backend = kernels::MakeBackend(param.backend, param.precision).value();
    ThreadPool pool(1);
    LoadOptions load;
    load.directory = testing::SourcePath("tests/goldens/models/" + param.model);
    load.shares.assign(static_cast<size_t>(param.ranks), 1);
    load.limits = limits;
    const auto model = LoadModel(load, group, *backend, pool);
    ASSERT_TRUE(model.ok()) << model.status();
    const Batch batch{.tokens = {5, 6, 7},
                      .positions = {0, 1, 2},
                      .sequences = {0, 0, 0},
                      .block_tables = {{0}},
                      .output_rows = {2}};
    ASSERT_TRUE((*model)->Step(batch).ok());
    ASSERT_TRUE(Barrier(group).ok());
    {
      const std::lock_guard lock(mutex);
      planned += (*model)->memory().lasting();
      weights += (*model)->memory().weight_bytes;
      held = Buffer::LiveBytes() - before;
    }
    ASSERT_TRUE(Barrier(group).ok());
  });
  EXPECT_LE(held, planned + 64u * static_cast<uint64_t>(param.ranks));  // the cache's spare bytes
  EXPECT_GE(static_cast<double>(held),
            static_cast<double>(planned) - kVectors * static_cast<double>(weights));
  EXPECT_EQ(Buffer::LiveBytes(), before);
}

INSTANTIATE_TEST_SUITE_P(
    Models, MemoryPlanOf,
    ::testing::Values(Case{"tiny-b"}, Case{"tiny-b", 3}, Case{"tiny-a-Q4_0.gguf"},
                      Case{"tiny-a-Q4_0.gguf", 2},
                      Case{"tiny-a-Q4_0.gguf", 2, "cpu", kernels::Precision::kExact},
                      Case{"tiny-k-Q4_K_M.gguf", 1, "ref"}, Case{"tiny-k-Q4_K_M.gguf"},
                      Case{"tiny-a-fp8", 2}, Case{"tiny-k-mlx4", 2}, Case{"tiny-flash", 2},
                      Case{"tiny-flash", 1, "ref"}));

// A backend's pack pads the last panel: planned as well.
TEST(PackedBytes, AreThoseOfThePackedMatrixWhateverItsShape) {
  const auto fast = kernels::MakeBackend("cpu", kernels::Precision::kFast).value();
  const auto exact = kernels::MakeBackend("cpu", kernels::Precision::kExact).value();
  for (const Encoding encoding : {Encoding::kQ4_0, Encoding::kQ8_0, Encoding::kQ6_K}) {
    for (const int64_t outputs : {1, 15, 16, 17, 48, 50}) {
      for (const int64_t count : {1, 3}) {
        for (const auto* backend : {fast.get(), exact.get()}) {
          HostMatrix matrix =
              HostMatrix::Allocate(WeightFormat::Of(encoding), count, outputs, 512, "test").value();
          const uint64_t planned = backend->PackedBytes(matrix);
          const uint64_t work = backend->WorkBytes(matrix);
          const uint64_t before = Buffer::LiveBytes() - matrix.data.bytes();
          const auto packed = backend->Pack(std::move(matrix)).value();
          EXPECT_EQ(packed->bytes(), planned) << outputs << " " << count;
          EXPECT_LE(Buffer::LiveBytes() - before, planned + work);
        }
      }
    }
  }
}

}  // namespace
}  // namespace lockstep
