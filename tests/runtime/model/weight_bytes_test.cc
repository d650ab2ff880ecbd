// What a step says it read of the weights is what the products that it asked for had to read.
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "runtime/kernels/timed_backend.h"
#include "runtime/model/model.h"
#include "tests/support/golden.h"
#include "tests/support/ranks.h"

namespace lockstep {
namespace {

uint64_t BytesOfProducts(const kernels::TimedBackend& backend) {
  uint64_t bytes = 0;
  for (const kernels::OpTime& op : backend.times()) bytes += op.outputs > 0 ? op.bytes : 0;
  return bytes;
}

TEST(WeightBytesOfAStep, AreThoseOfItsProducts) {
  for (const std::string name : {"tiny-a", "tiny-b", "tiny-flash", "tiny-k-Q4_K_M.gguf"}) {
    testing::RunRanks(2, "tcp", [&](Membership&, Group& group) {
      kernels::TimedBackend backend(kernels::MakeBackend("cpu", kernels::Precision::kFast).value());
      ThreadPool pool(1);
      LoadOptions load;
      load.directory = testing::SourcePath("tests/goldens/models/" + name);
      load.shares = {2, 1};
      load.limits = {.max_rows = 8, .max_outputs = 8, .max_model_len = 64, .kv_blocks = 4};
      const auto model = LoadModel(load, group, backend, pool);
      ASSERT_TRUE(model.ok()) << model.status();
      uint64_t before = 0;
      for (const size_t rows : {1, 2, 6}) {
        Batch batch{.block_tables = {{0}}, .output_rows = {static_cast<int32_t>(rows - 1)}};
        for (size_t row = 0; row < rows; ++row) {
          batch.tokens.push_back(static_cast<int32_t>(17 * row + 3));
          batch.positions.push_back(static_cast<int32_t>(row));
          batch.sequences.push_back(0);
        }
        backend.Reset();
        const auto output = (*model)->Step(batch);
        ASSERT_TRUE(output.ok()) << output.status();
        // Which rounds the bytes of one of a stack's matrices down.
        EXPECT_NEAR(static_cast<double>(output->weight_bytes),
                    static_cast<double>(BytesOfProducts(backend)), 64)
            << name << ", " << rows;
        // More rows choose more experts, but no expert is read twice.
        EXPECT_GE(output->weight_bytes, before) << name;
        EXPECT_LE(output->weight_bytes, (*model)->memory().weight_bytes) << name;
        before = output->weight_bytes;
      }
    });
  }
}

}  // namespace
}  // namespace lockstep
