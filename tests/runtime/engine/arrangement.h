// An engine over ranks that are threads and a model without weights, and what its requests come to.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/engine/engine.h"
#include "runtime/engine/tensor_parallel.h"
#include "tests/runtime/engine/fake_model.h"
#include "tests/runtime/engine/thread_group.h"

namespace lockstep::testing {

// A token is the letter 'a' + id % 26.
class LetterDecoder final : public TokenDecoder {
 public:
  std::string Push(int32_t id) override { return std::string(1, static_cast<char>('a' + id % 26)); }
  std::string Finish() override { return {}; }
};

// Calls `act` with the number of each token that the engine turns into text, on its thread.
class ActingDecoder final : public TokenDecoder {
 public:
  explicit ActingDecoder(std::function<void(int)> act) : act_(std::move(act)) {}
  std::string Push(int32_t) override {
    act_(++tokens_);
    return {};
  }
  std::string Finish() override { return {}; }

 private:
  const std::function<void(int)> act_;
  int tokens_ = 0;
};

struct Arrangement {
  int ranks = 1;
  SchedulerLimits limits{.max_sequences = 6,
                         .max_rows = 26,
                         .max_outputs = 6,
                         .prefill_rows = 20,
                         .max_model_len = 512,
                         .kv_blocks = 200};
  int64_t max_queue = 256;
  std::function<Status()> health;
  std::function<std::unique_ptr<TokenDecoder>()> make_decoder;  // instead of letters
  std::function<void(int rank, FakeModel*)> prepare;  // changes a rank's model before it starts
  std::function<TokenConstraints*(int rank)> constraints;    // what keeps grammars there
  std::function<std::unique_ptr<KeptCache>(int rank)> kept;  // what keeps the cache there
};

inline EngineOptions OptionsOf(const Arrangement& setup) {
  EngineOptions options;
  options.limits = setup.limits;
  options.vocab_size = kFakeVocab;
  options.token_set.limit = kFakeVocab;
  options.max_queue = setup.max_queue;
  options.make_decoder = [] { return std::make_unique<LetterDecoder>(); };
  if (setup.make_decoder) options.make_decoder = setup.make_decoder;
  options.health = setup.health;
  return options;
}

// Runs `body` on rank 0 with an engine over all ranks; returns every worker's final status.
inline std::vector<Status> WithEngine(const Arrangement& setup,
                                      const std::function<void(Engine&)>& body) {
  std::vector<Status> ends(setup.ranks);
  OnRanks(setup.ranks, [&](Group& group) {
    const VocabSlice slice = FakeSlice(group.rank(), setup.ranks);
    const SchedulerLimits& limits = setup.limits;
    FakeModel model({limits.max_rows, limits.max_outputs, limits.max_model_len, limits.kv_blocks},
                    slice);
    if (setup.prepare) setup.prepare(group.rank(), &model);
    TokenConstraints* constraints = setup.constraints ? setup.constraints(group.rank()) : nullptr;
    auto executor = TensorParallelExecutor::Create(model, group, slice, FakeNames(setup.ranks),
                                                   nullptr, constraints,
                                                   setup.kept ? setup.kept(group.rank()) : nullptr);
    ASSERT_TRUE(executor.ok()) << executor.status();
    if (group.rank() != 0) {
      ends[group.rank()] = (*executor)->RunWorker();
      return;
    }
    EngineOptions options = OptionsOf(setup);
    options.constraints = constraints;
    Engine engine(std::move(options), executor->get());
    body(engine);
  });
  return ends;
}

inline Request Ask(std::vector<int32_t> prompt, int64_t max_tokens) {
  Request request;
  request.prompt = std::move(prompt);
  request.sampling.temperature = 0;
  request.stop.max_tokens = max_tokens;
  return request;
}

struct Answer {
  OutputDelta all;
  Summary summary;
};

inline Answer Collect(OutputStream& stream) {
  Answer answer;
  const Deadline deadline = Deadline::After(60'000);
  while (!answer.all.finished && !deadline.Passed()) {
    stream.WaitFor(1'000);
    OutputDelta delta = stream.Take();
    answer.all.text += delta.text;
    answer.all.ids.insert(answer.all.ids.end(), delta.ids.begin(), delta.ids.end());
    answer.all.logprobs.insert(answer.all.logprobs.end(), delta.logprobs.begin(),
                               delta.logprobs.end());
    answer.all.finished = delta.finished;
  }
  EXPECT_TRUE(answer.all.finished) << "no end within a minute";
  if (answer.all.finished) answer.summary = stream.summary();
  return answer;
}

inline Answer Submit(Engine& engine, Request request) {
  auto stream = engine.Submit(std::move(request));
  EXPECT_TRUE(stream.ok()) << stream.status();
  return stream.ok() ? Collect(**stream) : Answer();
}

}  // namespace lockstep::testing
