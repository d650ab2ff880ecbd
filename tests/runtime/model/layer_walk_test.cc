// One part of the model at a time gives the bits of the whole one, in the memory that was planned.
#include "runtime/model/layer_walk.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/model/probe.h"
#include "runtime/model/shard_plan.h"
#include "runtime/tensor/buffer.h"
#include "runtime/weights/slice_loader.h"
#include "tests/support/golden.h"
#include "tests/support/ranks.h"

namespace lockstep {
namespace {

using kernels::MakeBackend;
using kernels::Precision;
using testing::RunRanks;

using Logits = std::vector<std::vector<float>>;  // of each backend

// A checkpoint in the formats that its files of ranks have.
struct Source {
  std::unique_ptr<Checkpoint> stored;
  std::unique_ptr<Checkpoint> checkpoint;
  ModelConfig config;
};

Source OpenSource(const std::string& model, const std::string& quantize = "") {
  Source source;
  source.stored = Checkpoint::Open(testing::SourcePath("tests/goldens/models/" + model)).value();
  source.config = ConfigOf(*source.stored).value();
  const auto formats = QuantizedFormats(source.config, *source.stored, quantize).value();
  source.checkpoint = WithFormats(*source.stored, formats);
  return source;
}

// What the whole model computes of the probe prompts in one step.
std::vector<float> WholeModel(const Source& source, const char* kernels, Precision precision) {
  std::vector<float> logits;
  RunRanks(1, "tcp", [&](Membership&, Group& group) {
    const auto backend = MakeBackend(kernels, precision).value();
    ThreadPool pool(1);
    OpenedModel opened;
    opened.checkpoint = WithFormats(*source.checkpoint, {});
    opened.config = source.config;
    opened.slice =
        PlanSlice(source.config, *opened.checkpoint, {1}, 0, false, backend.get()).value();
    LoadOptions load;
    load.shares = {1};
    load.limits = ProbeLimits();
    const auto model = LoadModel(opened, load, group, *backend, pool);
    ASSERT_TRUE(model.ok()) << model.status();
    const auto output = (*model)->Step(ProbeBatch(source.config.vocab_size));
    ASSERT_TRUE(output.ok()) << output.status();
    logits.assign(output->logits.begin(), output->logits.end());
  });
  return logits;
}

// What a walk takes besides; backends of both precisions.
struct Walk {
  explicit Walk(const char* kernels = "cpu", int threads = 2)
      : exact(MakeBackend(kernels, Precision::kExact).value()),
        fast(MakeBackend(kernels, Precision::kFast).value()) {
    options.limits = ProbeLimits();
    options.backends = {exact.get(), fast.get()};
    options.threads = threads;
  }

  StatusOr<Logits> Run(const Source& source) {
    LOCKSTEP_ASSIGN_OR_RETURN(const LayerWalk walk, LayerWalk::Plan(*source.checkpoint, options));
    plan = walk.plan();
    std::optional<StatusOr<Logits>> result;
    RunRanks(1, "tcp", [&](Membership&, Group& group) {
      ThreadPool pool(options.threads);
      result = walk.Run(ProbeBatch(source.config.vocab_size), group, pool);
    });
    return *std::move(result);
  }

  std::unique_ptr<kernels::Backend> exact, fast;
  LayerWalkOptions options;
  LayerWalkPlan plan;
};

bool SameBits(const std::vector<float>& one, const std::vector<float>& other) {
  return !one.empty() && one.size() == other.size() &&
         std::memcmp(one.data(), other.data(), one.size() * sizeof(float)) == 0;
}

struct Case {
  const char* model;
  const char* quantize = "";
  const char* kernels = "cpu";
  int threads = 2;
};

class LayerWalkOf : public ::testing::TestWithParam<Case> {};

TEST_P(LayerWalkOf, HasTheBitsOfTheWholeModel) {
  const Case& param = GetParam();
  const Source source = OpenSource(param.model, param.quantize);
  Walk walk(param.kernels, param.threads);
  const auto logits = walk.Run(source);
  ASSERT_TRUE(logits.ok()) << logits.status();
  ASSERT_EQ(logits->size(), 2u);
  EXPECT_TRUE(SameBits((*logits)[0], WholeModel(source, param.kernels, Precision::kExact)));
  EXPECT_TRUE(SameBits((*logits)[1], WholeModel(source, param.kernels, Precision::kFast)));
}

INSTANTIATE_TEST_SUITE_P(
    Models, LayerWalkOf,
    ::testing::Values(Case{"tiny-a"}, Case{"tiny-b"}, Case{"tiny-k", "", "cpu", 5},
                      Case{"tiny-k", "", "ref"}, Case{"tiny-k", "q4_k,head=q6_k,embedding=q8_0"},
                      Case{"tiny-a", "fp8"}, Case{"tiny-a-Q4_0.gguf", "", "cpu", 1},
                      Case{"tiny-a-Q8_0.gguf", "", "ref"}, Case{"tiny-k-Q4_K_M.gguf"},
                      Case{"tiny-a-fp8"}, Case{"tiny-a-mlx8"}, Case{"tiny-k-mlx4"},
                      Case{"tiny-flash"}, Case{"tiny-flash", "q8_0", "cpu", 3},
                      Case{"tiny-flash-F16.gguf"}, Case{"tiny-flash", "", "ref"}));

// 8-bit activations change the bits of quantized models and of no others: else the second backend
// of a walk was never asked.
TEST(LayerWalk, TheBackendsDifferWhereProductsAreQuantized) {
  for (const auto& [model, differ] : std::map<std::string, bool>{
           {"tiny-a", false}, {"tiny-a-fp8", false}, {"tiny-a-Q4_0.gguf", true}}) {
    const auto logits = Walk().Run(OpenSource(model));
    ASSERT_TRUE(logits.ok()) << logits.status();
    EXPECT_EQ(SameBits((*logits)[0], (*logits)[1]), !differ) << model;
  }
}

TEST(LayerWalk, HoldsOnePartAtATimeInThePlannedMemory) {
  for (const char* model : {"tiny-b", "tiny-k-Q4_K_M.gguf", "tiny-flash"}) {
    for (const bool with_fast : {false, true}) {
      const Source source = OpenSource(model);
      const uint64_t before = Buffer::LiveBytes();
      uint64_t most = 0;
      {
        Walk walk;
        if (!with_fast) walk.options.backends.pop_back();
        walk.options.progress = [&](const LoadProgress&) {
          most = std::max(most, Buffer::LiveBytes() - before);
        };
        ASSERT_TRUE(walk.Run(source).ok());
        // Without what rows pass through on the threads and in the reader, which is in no buffer.
        const uint64_t chunks = 3 * SliceLoader::kThreadBytes;
        ASSERT_GT(walk.plan.memory_bytes, chunks);
        EXPECT_LE(most, walk.plan.memory_bytes - chunks + 128) << model;
        EXPECT_FALSE(walk.plan.largest_part.empty());
      }
      EXPECT_EQ(Buffer::LiveBytes(), before);
      if (with_fast) continue;  // the room for 8-bit products is larger than these models
      const auto whole = PlanSlice(source.config, *source.checkpoint, {1}, 0);
      EXPECT_LT(most, whole->weight_bytes) << model;
    }
  }
}

TEST(LayerWalk, ReadsEveryByteOnceAndSaysHowFarItIs) {
  for (const char* quantize : {"", "q4_k"}) {
    const Source source = OpenSource("tiny-k", quantize);
    Walk walk;
    std::vector<uint64_t> done;
    walk.options.progress = [&](const LoadProgress& progress) {
      done.push_back(progress.bytes_done);
      EXPECT_EQ(progress.bytes_total, walk.plan.file_bytes);
    };
    ASSERT_TRUE(walk.Run(source).ok());
    EXPECT_TRUE(std::is_sorted(done.begin(), done.end()));
    ASSERT_FALSE(done.empty());
    EXPECT_EQ(done.back(), walk.plan.file_bytes);
    uint64_t stored = 0, norms = 0;
    for (const auto& [name, info] : source.stored->tensors()) {
      stored += info.stored_bytes();
      // Read with the layer and for the part before it.
      if (name.ends_with(".input_layernorm.weight")) norms += info.stored_bytes();
    }
    EXPECT_EQ(walk.plan.file_bytes, stored + norms);
  }
}

TEST(LayerWalk, StopsBetweenParts) {
  Walk walk;
  int asked = 0;
  walk.options.stop = [&] { return ++asked == 3; };
  uint64_t done = 0;
  walk.options.progress = [&](const LoadProgress& progress) { done = progress.bytes_done; };
  const auto logits = walk.Run(OpenSource("tiny-a"));
  ASSERT_FALSE(logits.ok());
  EXPECT_EQ(ExitCode(logits.status()), 130);
  EXPECT_EQ(asked, 3);
  EXPECT_GT(done, 0u);
  EXPECT_LT(done, walk.plan.file_bytes);
}

}  // namespace
}  // namespace lockstep
