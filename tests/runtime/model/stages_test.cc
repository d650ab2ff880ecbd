// A model parted by layers: which layers a stage holds, and that stages one after the other compute
// the bits of the whole.
#include "runtime/model/stages.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "collectives/bootstrap.h"
#include "runtime/model/model.h"
#include "tests/support/compare.h"
#include "tests/support/golden.h"

namespace lockstep {
namespace {

using testing::Golden;
using testing::SourcePath;

std::vector<Range> Cut(const std::vector<uint64_t>& bytes, const std::vector<double>& shares,
                       uint64_t before = 0, uint64_t behind = 0) {
  return CutLayersByBytes(bytes, before, behind, shares).value();
}

TEST(CutLayers, GivesStagesBytesByTheirShares) {
  EXPECT_EQ(Cut({1, 1, 1, 1}, {1, 1}), (std::vector<Range>{{0, 2}, {2, 4}}));
  EXPECT_EQ(Cut({1, 1, 1, 1}, {3, 1}), (std::vector<Range>{{0, 3}, {3, 4}}));
  // What is large counts, not how many there are.
  EXPECT_EQ(Cut({1, 1, 1, 9}, {1, 1}), (std::vector<Range>{{0, 3}, {3, 4}}));
  // So does what the first and the last stage hold besides.
  EXPECT_EQ(Cut({2, 2, 2, 2}, {1, 1}, 4), (std::vector<Range>{{0, 1}, {1, 4}}));
  EXPECT_EQ(Cut({2, 2, 2, 2}, {1, 1}, 0, 4), (std::vector<Range>{{0, 3}, {3, 4}}));
}

TEST(CutLayers, LeavesNoStageWithoutALayer) {
  EXPECT_EQ(Cut({1, 1, 1}, {1, 1000, 1}), (std::vector<Range>{{0, 1}, {1, 2}, {2, 3}}));
  EXPECT_EQ(Cut({1, 1, 1}, {1000, 1, 1}), (std::vector<Range>{{0, 1}, {1, 2}, {2, 3}}));
  EXPECT_EQ(Cut({1, 1, 1, 1}, {1, 1}, 1000), (std::vector<Range>{{0, 1}, {1, 4}}));
  EXPECT_EQ(KindOf(CutLayersByBytes({1, 1}, 0, 0, {1, 1, 1}).status()), ErrorKind::kUsage);
  EXPECT_EQ(KindOf(CutLayersByBytes({1, 1}, 0, 0, {1, 0}).status()), ErrorKind::kUsage);
}

// Ranks of one process, each a group of its own.
struct Stage {
  std::unique_ptr<Membership> membership;
  std::unique_ptr<Group> group;
  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<kernels::Backend> backend;
  std::unique_ptr<Model> model;
};

const ModelLimits kLimits = {
    .max_rows = 64, .max_outputs = 64, .max_model_len = 64, .kv_blocks = 8};

Stage OpenStage(const std::string& model, const StagePlace& place) {
  Stage stage;
  stage.membership = Bootstrap({}).value();
  stage.group = stage.membership->OpenGroup().value();
  stage.pool = std::make_unique<ThreadPool>(1);
  stage.backend = kernels::MakeBackend("cpu", kernels::Precision::kExact).value();
  LoadOptions load;
  load.directory = SourcePath("tests/goldens/models/" + model);
  load.shares = {1};
  load.stage = place;
  load.limits = kLimits;
  auto loaded = LoadModel(load, *stage.group, *stage.backend, *stage.pool);
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  if (loaded.ok()) stage.model = std::move(*loaded);
  return stage;
}

std::vector<Stage> OpenStages(const std::string& model, int count) {
  std::vector<Stage> stages;
  for (int stage = 0; stage < count; ++stage)
    stages.push_back(OpenStage(model, {stage, std::vector<double>(count, 1)}));
  return stages;
}

// Logits of all tokens, `step` of them at a time.
std::vector<float> Logits(std::vector<Stage>& stages, const std::vector<int32_t>& tokens,
                          size_t step) {
  std::vector<float> logits;
  for (size_t begin = 0; begin < tokens.size(); begin += step) {
    Batch batch;
    batch.block_tables = {{3, 1, 7, 5}};
    for (size_t i = begin; i < std::min(begin + step, tokens.size()); ++i) {
      batch.output_rows.push_back(static_cast<int32_t>(batch.rows()));
      batch.tokens.push_back(tokens[i]);
      batch.positions.push_back(static_cast<int32_t>(i));
      batch.sequences.push_back(0);
    }
    StepOutput output;
    for (Stage& stage : stages) {
      batch.entering = output.leaving;
      auto stepped = stage.model->Step(batch);
      EXPECT_TRUE(stepped.ok()) << stepped.status();
      if (!stepped.ok()) return {};
      output = *stepped;
    }
    logits.insert(logits.end(), output.logits.begin(), output.logits.end());
  }
  return logits;
}

class StagedModel : public ::testing::TestWithParam<const char*> {};

TEST_P(StagedModel, HasTheBitsOfTheWholeInAnyNumberOfStages) {
  const std::string name = GetParam();
  const std::string family = name.substr(0, name.find('-', 5));
  const Golden golden(SourcePath("tests/goldens/goldens/" + family + ".safetensors"));
  const std::vector<int32_t> tokens = golden.Ids("main.input_ids");
  std::vector<Stage> whole = OpenStages(name, 1);
  const std::vector<float> want = Logits(whole, tokens, tokens.size());
  if (name == family) EXPECT_LE(testing::RelativeError(want, golden.Floats("main.logits")), 2e-5);
  const MemoryPlan& memory = whole[0].model->memory();
  for (const int count : {2, 3, 4}) {
    std::vector<Stage> stages = OpenStages(name, count);
    EXPECT_EQ(Logits(stages, tokens, tokens.size()), want) << count << " stages";
    EXPECT_EQ(Logits(stages, tokens, 7), want) << count << " stages in chunks";
    uint64_t cache = 0;
    for (const Stage& stage : stages) {
      cache += stage.model->memory().kv_bytes;
      EXPECT_LT(stage.model->memory().weight_bytes, memory.weight_bytes);
      EXPECT_LT(stage.model->bytes_read(), whole[0].model->bytes_read());
    }
    EXPECT_EQ(cache, memory.kv_bytes);
  }
}

std::string NameOf(const ::testing::TestParamInfo<const char*>& info) {
  return testing::CaseName(info.param, info.index);
}

INSTANTIATE_TEST_SUITE_P(Models, StagedModel,
                         ::testing::Values("tiny-a", "tiny-b", "tiny-flash", "tiny-a-Q8_0.gguf",
                                           "tiny-a-fp8"),
                         NameOf);

TEST(StagedModel, RefusesRowsThatTheStageBeforeDidNotGive) {
  std::vector<Stage> stages = OpenStages("tiny-a", 2);
  Batch batch;
  batch.tokens = {5};
  batch.positions = {0};
  batch.sequences = {0};
  batch.block_tables = {{0}};
  EXPECT_FALSE(stages[1].model->Step(batch).ok());  // none
  const std::vector<float> rows(64 * 2, 1.0f);
  batch.entering = rows;
  EXPECT_FALSE(stages[1].model->Step(batch).ok());  // too many
  EXPECT_FALSE(stages[0].model->Step(batch).ok());  // nobody is before it
  batch.entering = std::span(rows).first(64);
  EXPECT_TRUE(stages[1].model->Step(batch).ok());
}

TEST(StagedModel, LooksAtAllOfTheCheckpointInEveryStage) {
  const auto backend = kernels::MakeBackend("cpu").value();
  const auto opened = OpenModelFiles(SourcePath("tests/goldens/models/tiny-a"), {0, {1}}, false,
                                     *backend, {1, {1, 1}})
                          .value();
  ModelConfig other = opened.config;
  other.attention_bias = false;  // the checkpoint has biases in layers of both stages
  for (const int stage : {0, 1}) {
    const auto plan =
        PlanSlice(other, *opened.checkpoint, {1}, 0, false, backend.get(), {stage, {1, 1}});
    EXPECT_EQ(KindOf(plan.status()), ErrorKind::kModel);
  }
}

}  // namespace
}  // namespace lockstep
