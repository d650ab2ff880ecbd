// A pipeline against tensor mode and against transformers: the same logits and the same tokens, in
// any number of stages, over gRPC and over links, and with stages of several ranks.
#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "runtime/engine/scheduler.h"
#include "tests/runtime/engine/rpc/pipeline_ranks.h"
#include "tests/support/compare.h"

namespace lockstep {
namespace {

using testing::Golden;
using testing::RunWay;
using testing::SourcePath;
using testing::Way;

Golden GoldenOf(const std::string& model) {
  return Golden(SourcePath("tests/goldens/goldens/" + model + ".safetensors"));
}

// The raw logits of every token, in steps of up to `step` rows.
std::vector<float> RawLogits(GroupExecutor& executor, const std::vector<int32_t>& tokens,
                             int32_t step) {
  std::vector<float> logits;
  StepPlan plan;
  StepOutcome outcome;
  const auto count = static_cast<int32_t>(tokens.size());
  for (int32_t begin = 0; begin < count; begin += step) {
    plan = {.step = plan.step + 1};
    if (begin == 0) {
      plan.started = {{.slot = 0, .tokens = tokens}};
      plan.growth = {{0, {4, 2, 9, 1, 5}}};
    }
    plan.spans = {{0, begin, std::min(step, count - begin), SpanOutput::kRaw}};
    const Status done = executor.Execute(plan, &outcome);
    EXPECT_TRUE(done.ok()) << done;
    if (!done.ok()) return {};
    logits.insert(logits.end(), outcome.raw_logits.begin(), outcome.raw_logits.end());
  }
  return logits;
}

std::vector<float> RawLogitsOf(const std::string& model, const Way& way, int32_t step) {
  std::vector<float> logits;
  RunWay(model, way, [&](GroupExecutor& executor, const ModelConfig&) {
    logits = RawLogits(executor, GoldenOf(model).Ids("main.input_ids"), step);
  });
  return logits;
}

struct Asked {
  std::vector<int32_t> prompt;
  int64_t tokens = 8;
  SamplingParams params = {.temperature = 0};
  int priority = 0;
  int64_t after_steps = 0;  // comes then
};

SamplingParams Drawn(uint64_t seed) {
  SamplingParams params;
  params.temperature = 1.3;
  params.top_p = 0.9;
  params.repetition_penalty = 1.2;
  params.presence_penalty = 0.4;
  params.frequency_penalty = 0.3;
  params.seed = seed;
  params.logprobs = 2;
  return params;
}

// Whether the tokens, and their log-probabilities where they were asked for.
struct Answers {
  std::vector<std::vector<int32_t>> tokens;
  std::vector<std::vector<double>> logprobs;
  int64_t preemptions = 0;
  bool operator==(const Answers&) const = default;
};

// All requests together, by the engine's scheduler.
Answers Answer(GroupExecutor& executor, const ModelConfig& config, const std::vector<Asked>& asked,
               int64_t kv_blocks = testing::kStageLimits.kv_blocks) {
  SchedulerLimits limits{.max_sequences = 4,
                         .max_rows = testing::kPlanRows,
                         .max_outputs = 4,
                         .prefill_rows = 16,
                         .prefill_rows_alone = 40,
                         .max_model_len = testing::kStageLimits.max_model_len,
                         .kv_blocks = kv_blocks};
  Scheduler scheduler(limits);
  const auto add = [&](size_t i) {
    ScheduledRequest request;
    request.id = i + 1;
    request.tokens = asked[i].prompt;
    request.max_tokens = asked[i].tokens;
    request.token_set.limit = config.vocab_size;
    request.params = asked[i].params;
    request.priority = asked[i].priority;
    scheduler.Add(std::move(request));
  };
  const auto add_those_of = [&](int64_t step) {
    for (size_t i = 0; i < asked.size(); ++i) {
      if (asked[i].after_steps == step) add(i);
    }
  };
  int64_t steps = 0;
  add_those_of(steps);
  Answers answers{std::vector<std::vector<int32_t>>(asked.size()),
                  std::vector<std::vector<double>>(asked.size())};
  StepPlan plan;
  StepOutcome outcome;
  while (scheduler.Next(&plan)) {
    const Status done = executor.Execute(plan, &outcome);
    EXPECT_TRUE(done.ok()) << done;
    if (!done.ok()) return answers;
    for (size_t i = 0; i < outcome.slots.size(); ++i) {
      const size_t index = *scheduler.RequestAt(outcome.slots[i]) - 1;
      scheduler.Append(outcome.slots[i], outcome.tokens[i].id);
      answers.tokens[index].push_back(outcome.tokens[i].id);
      for (const TokenLogprob& best : outcome.tokens[i].best)
        answers.logprobs[index].push_back(best.logprob);
      if (std::ssize(answers.tokens[index]) == asked[index].tokens) scheduler.Remove(index + 1);
    }
    add_those_of(++steps);
  }
  answers.preemptions = scheduler.preemptions();
  return answers;
}

std::vector<Asked> Questions(const Golden& golden) {
  return {{golden.Ids("greedy.prompt_ids"), 32},
          {golden.Ids("batch.0.input_ids"), 8},
          {golden.Ids("main.input_ids"), 12, Drawn(7)},
          {golden.Ids("batch.2.input_ids"), 8},
          // Waits for a slot, and shares the beginning of the third one.
          {golden.Ids("main.input_ids"), 12, Drawn(8)}};
}

Answers AnswersOf(const std::string& model, const Way& way,
                  std::vector<uint64_t>* digests = nullptr) {
  Answers answers;
  auto ends = RunWay(model, way, [&](GroupExecutor& executor, const ModelConfig& config) {
    answers = Answer(executor, config, Questions(GoldenOf(model)));
  });
  if (digests != nullptr) *digests = std::move(ends);
  return answers;
}

class PipelineOf : public ::testing::TestWithParam<std::pair<const char*, Way>> {};

TEST_P(PipelineOf, HasTheBitsAndTokensOfTensorMode) {
  const std::string model = GetParam().first;
  const Way way = GetParam().second;
  const Golden golden = GoldenOf(model);
  // Stages change no bit; the ranks of a stage add up as those of tensor mode.
  const Way tensor = {way.ranks / way.stages, 1};
  const std::vector<float> want = RawLogitsOf(model, tensor, 40);
  EXPECT_LE(testing::RelativeError(want, golden.Floats("main.logits")), 2e-5);
  EXPECT_EQ(RawLogitsOf(model, way, 40), want);  // five micro-batches a step
  EXPECT_EQ(RawLogitsOf(model, way, 5), want);

  std::vector<uint64_t> digests;
  const Answers answers = AnswersOf(model, way, &digests);
  EXPECT_EQ(answers, AnswersOf(model, tensor));
  EXPECT_EQ(answers.tokens[0], golden.Ids("greedy.new_ids"));
  EXPECT_EQ(answers.tokens[1], golden.Ids("batch.0.greedy8"));
  EXPECT_EQ(answers.tokens[3], golden.Ids("batch.2.greedy8"));
  const int width = way.ranks / way.stages;
  ASSERT_EQ(std::ssize(digests), way.ranks);
  for (int rank = 0; rank < way.ranks; ++rank)
    EXPECT_EQ(digests[rank], digests[rank / width * width]) << "ranks of a stage hold other bits";
}

std::vector<std::pair<const char*, Way>> Ways() {
  std::vector<std::pair<const char*, Way>> ways;
  for (const char* link : {"grpc", "tcp"}) {
    for (const int stages : {2, 3, 4}) ways.push_back({"tiny-a", {stages, stages, link}});
    ways.push_back({"tiny-a", {4, 2, link}});
    ways.push_back({"tiny-flash", {3, 3, link}});
  }
  ways.push_back({"tiny-b", {2, 2, "shm", {5, 1}}});
  ways.push_back({"tiny-flash", {4, 2, "shm"}});
  return ways;
}

std::string NameOf(const ::testing::TestParamInfo<std::pair<const char*, Way>>& info) {
  const Way& way = info.param.second;
  return testing::CaseName(std::string(info.param.first) + "_" + std::to_string(way.stages) +
                               "_of_" + std::to_string(way.ranks) + "_" + way.link,
                           info.index);
}

INSTANTIATE_TEST_SUITE_P(Ways, PipelineOf, ::testing::ValuesIn(Ways()), NameOf);

// Who is preempted is computed again from its answer so far, and draws and penalties go on; blocks
// change hands.
TEST(Pipeline, PreemptedSequencesGoOnAsInTensorMode) {
  const Golden golden = GoldenOf("tiny-a");
  std::vector<Asked> asked = {{golden.Ids("greedy.prompt_ids"), 24},
                              {golden.Ids("batch.0.input_ids"), 24, Drawn(3)},
                              {golden.Ids("main.input_ids"), 16, Drawn(7)},
                              {golden.Ids("batch.2.input_ids"), 24}};
  for (Asked& one : asked) one.priority = 1;
  for (const int64_t step : {6, 9, 14})
    asked.push_back({golden.Ids("batch.0.input_ids"), 6, Drawn(11), 0, step});
  const auto answer = [&](Way way) {
    way.kv_blocks = 14;
    Answers answers;
    RunWay("tiny-a", way, [&](GroupExecutor& executor, const ModelConfig& config) {
      answers = Answer(executor, config, asked, way.kv_blocks);
    });
    return answers;
  };
  const Answers want = answer({1, 1});
  EXPECT_GE(want.preemptions, 2);
  for (size_t i = 0; i < asked.size(); ++i) EXPECT_EQ(std::ssize(want.tokens[i]), asked[i].tokens);
  EXPECT_EQ(answer({2, 2, "grpc"}), want);
  EXPECT_EQ(answer({3, 3, "tcp"}), want);
}

TEST(Pipeline, GathersRawRowsWithTheHiddenStatesOfTheLastStage) {
  const std::vector<int32_t> tokens = GoldenOf("tiny-a").Ids("main.input_ids");
  const auto gather = [&](const Way& way) {
    StepOutcome outcome;
    RunWay("tiny-a", way, [&](GroupExecutor& executor, const ModelConfig&) {
      StepPlan plan{.step = 1};
      plan.started = {{.slot = 2, .tokens = tokens}};
      plan.growth = {{2, {4, 2, 9}}};
      plan.spans = {{2, 0, 20, SpanOutput::kRawHidden}};
      const Status done = executor.Execute(plan, &outcome);
      EXPECT_TRUE(done.ok()) << done;
    });
    return outcome;
  };
  const StepOutcome tensor = gather({2, 1}), pipeline = gather({4, 2});
  EXPECT_EQ(pipeline.raw_rows, 20);
  EXPECT_EQ(pipeline.raw_logits, tensor.raw_logits);
  EXPECT_EQ(pipeline.raw_hidden, tensor.raw_hidden);  // of the two ranks that hold the head
}

TEST(Pipeline, EmptyStepsPassAllStages) {
  RunWay("tiny-a", {3, 3, "tcp"}, [&](GroupExecutor& executor, const ModelConfig&) {
    StepOutcome outcome;
    for (uint64_t step = 1; step <= 3; ++step) {
      const Status done = executor.Execute({.step = step}, &outcome);
      EXPECT_TRUE(done.ok()) << done;
      EXPECT_TRUE(outcome.slots.empty());
    }
  });
}

}  // namespace
}  // namespace lockstep
