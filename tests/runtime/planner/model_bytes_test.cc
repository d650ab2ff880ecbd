// Bytes of models: against what loading counts, and against published sizes.
#include "runtime/planner/model_bytes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>
#include <set>

#include "runtime/model/model.h"
#include "runtime/model/weight_reader.h"
#include "runtime/model/weights.h"
#include "runtime/planner/known_models.h"
#include "runtime/planner/predict.h"
#include "runtime/planner/seats.h"
#include "tests/support/seed.h"

namespace lockstep::planner {
namespace {

using ::testing::HasSubstr;

std::string Source(const std::string& path) {
  return std::string(std::getenv("LOCKSTEP_SOURCE_DIR")) + "/" + path;
}

// Plain and quantized, mixed formats, and both kinds of attention.
std::vector<std::string> Checkpoints() {
  return {Source("models/tiny"),
          Source("tests/goldens/models/tiny-a-fp8"),
          Source("tests/goldens/models/tiny-k-Q4_K_M.gguf"),
          Source("tests/goldens/models/tiny-k-mlx4"),
          Source("tests/goldens/models/tiny-flash"),
          Source("tests/goldens/models/tiny-flash-F16.gguf")};
}

TEST(ModelBytes, AreThoseThatLoadingCountsForEveryRank) {
  for (const std::string& path : Checkpoints()) {
    const auto checkpoint = Checkpoint::Open(path);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    for (const std::vector<double>& shares :
         {std::vector<double>{1}, std::vector<double>{1, 1}, std::vector<double>{3, 2, 1}}) {
      const StatusOr<CountedModel> model = CountModel(**checkpoint, shares);
      ASSERT_TRUE(model.ok()) << model.status();
      for (size_t rank = 0; rank < shares.size(); ++rank) {
        const StatusOr<SlicePlan> slice =
            PlanSlice(model->config, **checkpoint, shares, static_cast<int>(rank));
        ASSERT_TRUE(slice.ok()) << slice.status();
        const RankBytes& counted = model->slices[rank];
        EXPECT_EQ(counted.weights(), slice->weight_bytes) << path << " rank " << rank;
        double read = static_cast<double>(counted.head);
        for (const LayerBytes& layer : counted.layers) {
          read += static_cast<double>(layer.always) +
                  static_cast<double>(layer.experts) *
                      static_cast<double>(model->config.num_experts_per_tok) /
                      static_cast<double>(model->config.n_routed_experts);
        }
        // Each layer's bytes for one token are whole ones.
        EXPECT_NEAR(read, static_cast<double>(slice->weight_bytes_per_token),
                    static_cast<double>(2 * counted.layers.size()))
            << path << " rank " << rank;
      }
    }
  }
}

// Layers of the same shapes in formats that change from layer to layer.
TEST(ModelBytes, LayersAreAlikeOnlyInTheSameFormats) {
  const auto checkpoint = KnownModel("GLM-4.7-Flash", "q4_k_m");
  ASSERT_TRUE(checkpoint.ok());
  const StatusOr<CountedModel> model = CountModel(**checkpoint, {2, 1});
  ASSERT_TRUE(model.ok());
  for (const int rank : {0, 1}) {
    WeightReader reader(**checkpoint, rank);
    const StatusOr<Weights> all = LoadWeights(model->config, model->cuts, reader);
    ASSERT_TRUE(all.ok()) << all.status();
    EXPECT_EQ(model->slices[static_cast<size_t>(rank)].weights(), all->bytes);
  }
}

TEST(ModelBytes, MemoryIsThatOfTheProgramsOwnPlan) {
  const auto checkpoint = Checkpoint::Open(Source("models/tiny"));
  ASSERT_TRUE(checkpoint.ok());
  const StatusOr<CountedModel> model = CountModel(**checkpoint, {2, 1});
  ASSERT_TRUE(model.ok()) << model.status();
  Load load;
  load.chunk = 100;
  load.cache = kernels::CacheType::kBF16;
  ModelLimits limits;
  limits.max_rows = 100 + 3;
  limits.max_outputs = 3;
  limits.max_model_len = 1000;
  limits.kv_blocks = 3 * 63;  // of 16 positions
  limits.cache_type = load.cache;
  for (const int rank : {0, 1}) {
    const StatusOr<SlicePlan> slice = PlanSlice(model->config, **checkpoint, {2, 1}, rank);
    ASSERT_TRUE(slice.ok());
    const MemoryPlan plan = PlanMemory(model->config, *slice, limits, rank, 1);
    const MemoryPlan planned =
        MemoryOf(TensorSlices(*model)[static_cast<size_t>(rank)], load, 3, 1000);
    EXPECT_EQ(planned.weight_bytes, plan.weight_bytes);
    EXPECT_EQ(planned.kv_bytes, plan.kv_bytes);
    EXPECT_EQ(planned.scratch_bytes, plan.scratch_bytes);
  }
}

TEST(ModelBytes, StagesHoldEveryByteOfTheModelOnce) {
  const auto checkpoint = Checkpoint::Open(Source("models/tiny"));
  ASSERT_TRUE(checkpoint.ok());
  for (const std::vector<double>& shares :
       {std::vector<double>{1, 1}, std::vector<double>{1, 2, 1}, std::vector<double>{1, 0, 1}}) {
    const StatusOr<CountedModel> model = CountModel(**checkpoint, shares);
    ASSERT_TRUE(model.ok());
    uint64_t weights = 0;
    int64_t layers = 0, dense = 0;
    for (const Seat& stage : PipelineStages(*model)) {
      weights += stage.bytes.weights();
      layers += stage.config.num_hidden_layers;
      dense += stage.config.first_k_dense_replace;
    }
    EXPECT_EQ(weights, model->whole.weights());
    EXPECT_EQ(layers, model->config.num_hidden_layers);
    EXPECT_EQ(dense, model->config.first_k_dense_replace);
  }
}

// Of published files, in GB; of NVFP4 of 338.7 G parameters in 4.5 bits and 19.6 G in 16.
TEST(KnownModels, HaveTheSizesOfPublishedFiles) {
  const struct {
    const char *model, *weights;
    double gb;
  } files[] = {{"GLM-4.6", "bf16", 714},        {"GLM-4.7", "bf16", 716.7},
               {"GLM-4.7", "q8_0", 375},        {"GLM-4.7", "q4_k_m", 214},
               {"GLM-4.6", "q4_k_xl", 203.7},  // 189.7 GiB
               {"GLM-4.7", "mlx8-g32", 397},    {"GLM-4.7", "nvfp4", 229.7},
               {"GLM-4.5-Air", "bf16", 219},    {"GLM-4.5-Air", "q8_0", 114},
               {"GLM-4.7-Flash", "bf16", 62.5}, {"GLM-4.7-Flash", "q8_0", 32},
               {"GLM-4.7-Flash", "q4_k_m", 18}};
  for (const auto& file : files) {
    const auto checkpoint = KnownModel(file.model, file.weights);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_NEAR(static_cast<double>(FileBytes(**checkpoint)) * 1e-9, file.gb, 0.015 * file.gb)
        << file.model << " " << file.weights;
  }
}

// GB that a token reads, by published arithmetic.
TEST(KnownModels, ATokenReadsWhatIsPublished) {
  const struct {
    const char *model, *weights;
    double gb;
  } reads[] = {{"GLM-4.7", "bf16", 65.7},      {"GLM-4.7", "fp8", 33.7},
               {"GLM-4.7", "nvfp4", 37.7},     {"GLM-4.7", "q8_0", 35.1},
               {"GLM-4.7", "mlx8-g32", 37.0},  {"GLM-4.5-Air", "bf16", 25.6},
               {"GLM-4.7-Flash", "bf16", 7.16}};
  for (const auto& read : reads) {
    const auto checkpoint = KnownModel(read.model, read.weights);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const StatusOr<CountedModel> model = CountModel(**checkpoint, {1});
    ASSERT_TRUE(model.ok()) << model.status();
    const Seat whole = WholeModel(*model).front();
    const LayerBytes layers = ReadsOf(whole.config, LayersOf(whole), 1);
    const auto bytes = static_cast<double>(layers.always + layers.experts + whole.bytes.head);
    EXPECT_NEAR(bytes * 1e-9, read.gb, 0.02 * read.gb) << read.model << " " << read.weights;
  }
}

TEST(KnownModels, HaveThePublishedParametersAndCache) {
  const auto checkpoint = KnownModel("4.7", "BF16");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const StatusOr<CountedModel> model = CountModel(**checkpoint, {1});
  ASSERT_TRUE(model.ok());
  EXPECT_NEAR(static_cast<double>(model->whole.weights()), 2 * 352.8e9, 0.002 * 2 * 352.8e9);
  EXPECT_NEAR(WorkOf(model->config).layer_parameters, 32.1e9, 0.1e9);
  EXPECT_NEAR(WorkOf(model->config).head_parameters, 0.776e9, 0.001e9);
  EXPECT_EQ(CacheBytesOf(WholeModel(*model).front(), kernels::CacheType::kBF16), 376'832);
}

TEST(KnownModels, NamesNobodyKnowsAreRefusedWithThoseThatAre) {
  EXPECT_THAT(MessageOf(KnownModel("GLM-9", "bf16").status()), HasSubstr("GLM-4.5-Air"));
  EXPECT_THAT(MessageOf(KnownModel("GLM-4.7", "q3").status()), HasSubstr("q4_k_m"));
}

TEST(KnownModels, CanBeCutWhateverTheirWeights) {
  EXPECT_EQ(KnownModels().size(), 5u);
  for (const std::string& weights : KnownWeights()) {
    for (const char* model : {"GLM-4.5-Air", "GLM-4.7-Flash"}) {
      const auto checkpoint = KnownModel(model, weights);
      ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
      EXPECT_TRUE(CountModel(**checkpoint, {2, 1}).ok()) << model << " " << weights;
    }
  }
}

TEST(DistinctExperts, AreThoseOfRandomChoices) {
  std::mt19937_64 random(lockstep::testing::TestSeed());
  for (const auto& [experts, chosen, rows] :
       {std::tuple{160, 8, 1}, {160, 8, 4}, {160, 8, 50}, {64, 4, 8}}) {
    constexpr int kTrials = 2000;
    double sum = 0;
    for (int trial = 0; trial < kTrials; ++trial) {
      std::set<int> all;
      for (int row = 0; row < rows; ++row) {
        std::set<int> mine;
        while (static_cast<int>(mine.size()) < chosen)
          mine.insert(static_cast<int>(random() % static_cast<uint64_t>(experts)));
        all.insert(mine.begin(), mine.end());
      }
      sum += static_cast<double>(all.size());
    }
    EXPECT_NEAR(DistinctExperts(experts, chosen, rows), sum / kTrials, 0.01 * sum / kTrials);
  }
}

}  // namespace
}  // namespace lockstep::planner
