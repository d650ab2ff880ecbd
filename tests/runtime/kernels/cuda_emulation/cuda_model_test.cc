// Whole models on emulated devices: against transformers' logits, against `ref` over quantized
// files, and that steps change no bit.
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/compare.h"
#include "tests/support/golden.h"
#include "tests/support/kernels.h"
#include "tests/support/ranks.h"
#include "tests/support/sequences.h"

namespace lockstep {
namespace {

using testing::Collected;
using testing::Golden;
using testing::LastLogits;
using testing::RelativeError;
using testing::Sequence;
using testing::SourcePath;

// On rank i `kernels[i]` computes; the model is cut evenly.
std::vector<Collected> RunModel(const std::string& model, const std::vector<const char*>& kernels,
                                const std::vector<Sequence>& sequences, int step,
                                bool share_choices = false) {
  std::vector<Collected> results(kernels.size());
  testing::RunRanks(static_cast<int>(kernels.size()), "tcp", [&](Membership&, Group& group) {
    const auto rank = static_cast<size_t>(group.rank());
    ThreadPool pool(1);
    const auto backend = testing::MakeNamed(kernels[rank]).value();
    LoadOptions load;
    load.directory = SourcePath("tests/goldens/models/" + model);
    load.shares = ValidateShares({}, group.size()).value();
    load.share_choices = share_choices;
    load.limits = {.max_rows = 128, .max_outputs = 128, .max_model_len = 256, .kv_blocks = 40};
    auto loaded = LoadModel(load, group, *backend, pool);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    results[rank] = testing::RunTogether(**loaded, sequences, step);
  });
  return results;
}

std::vector<Sequence> Prompt(const std::string& model, size_t tokens = 40) {
  const Golden golden(SourcePath("tests/goldens/goldens/" + model + ".safetensors"));
  std::vector<int32_t> ids = golden.Ids("main.input_ids");
  ids.resize(std::min(tokens, ids.size()));
  return {{ids, 0}};
}

TEST(CudaModel, LogitsAgreeWithTransformersOnOneDeviceAndOnTwo) {
  for (const auto& [model, devices] :
       {std::pair<std::string, std::vector<const char*>>{"tiny-a", {"cuda:0", "cuda:0"}},
        {"tiny-b", {"cuda:0"}},
        {"tiny-k", {"cuda:0"}},
        {"tiny-flash", {"cuda:0", "cuda:0"}}}) {
    const Golden golden(SourcePath("tests/goldens/goldens/" + model + ".safetensors"));
    const auto ranks = RunModel(model, devices, Prompt(model), 0);
    EXPECT_LE(RelativeError(LastLogits(ranks, 0, -1), golden.Floats("main.logits")), 2e-5) << model;
    for (const Collected& rank : ranks) EXPECT_EQ(rank.digests, ranks[0].digests) << model;
  }
}

// A processor and a device in one group: what they send each other is one.
TEST(CudaModel, ProcessorsAndDevicesComputeTogether) {
  for (const std::string model : {"tiny-b", "tiny-flash"}) {
    const Golden golden(SourcePath("tests/goldens/goldens/" + model + ".safetensors"));
    for (const std::vector<const char*>& kernels :
         {std::vector<const char*>{"cpu", "cuda:0"}, {"cuda:0", "cpu"}}) {
      const auto ranks = RunModel(model, kernels, Prompt(model), 0, /*share_choices=*/true);
      EXPECT_LE(RelativeError(LastLogits(ranks, 0, -1), golden.Floats("main.logits")), 2e-5)
          << model << ", " << kernels[0] << " first";
      EXPECT_EQ(ranks[1].digests, ranks[0].digests) << model;
    }
  }
}

TEST(CudaModel, NeitherStepsNorTheOrderOfThreadsChangeABit) {
  for (const std::string model : {"tiny-a", "tiny-flash"}) {
    const auto whole = RunModel(model, {"cuda:0"}, Prompt(model, 20), 0);
    for (const int step : {1, 7}) {
      const auto stepped = RunModel(model, {"cuda:1"}, Prompt(model, 20), step);
      EXPECT_EQ(stepped[0].logits, whole[0].logits) << model << ", steps of " << step;
    }
  }
}

TEST(CudaModel, QuantizedFilesAgreeWithRef) {
  for (const std::string file :
       {"tiny-a-Q4_0.gguf", "tiny-a-fp8", "tiny-a-mlx8", "tiny-k-Q4_K_M.gguf", "tiny-k-mlx4"}) {
    const auto prompt = Prompt(file.substr(0, 6), 12);
    const auto want = RunModel(file, {"ref"}, prompt, 0);
    const auto got = RunModel(file, {"cuda:0"}, prompt, 0);
    EXPECT_LE(RelativeError(got[0].logits[0], want[0].logits[0]), 2e-5) << file;
  }
}

}  // namespace
}  // namespace lockstep
