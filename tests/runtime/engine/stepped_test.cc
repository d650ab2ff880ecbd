// The engine in turns that its owner asks for, on a clock that its owner sets.
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/engine/engine.h"

namespace lockstep {
namespace {

// Every step takes 10 ms of the clock.
class TenMilliseconds final : public Executor {
 public:
  explicit TenMilliseconds(VirtualClock* clock) : clock_(clock) {}

  Status Execute(const StepPlan& plan, StepOutcome* outcome) override {
    clock_->Advance(10'000'000);
    outcome->Clear();
    for (const RowSpan& span : plan.spans) {
      if (span.output != SpanOutput::kSample) continue;
      outcome->slots.push_back(span.slot);
      outcome->tokens.push_back({.id = 1});
    }
    return OkStatus();
  }
  StatusOr<std::vector<uint64_t>> Stop(uint64_t, ErrorKind) override {
    ++stops;
    return std::vector<uint64_t>{7};
  }
  int stops = 0;

 private:
  VirtualClock* const clock_;
};

EngineOptions SteppedOptions(const Clock* clock) {
  EngineOptions options;
  options.limits = {.max_sequences = 2,
                    .max_rows = 18,
                    .max_outputs = 2,
                    .prefill_rows = 16,
                    .max_model_len = 64,
                    .kv_blocks = 8};
  options.vocab_size = 10;
  options.max_queue = 3;
  options.stepped = true;
  options.clock = clock;
  return options;
}

Request AskFor(int64_t prompt, int64_t tokens) {
  Request request;
  request.prompt.assign(static_cast<size_t>(prompt), 5);
  request.stop.max_tokens = tokens;
  return request;
}

TEST(SteppedEngine, TimesAreTheClocks) {
  VirtualClock clock;
  clock.Set(1'000'000'000);
  TenMilliseconds executor(&clock);
  Engine engine(SteppedOptions(&clock), &executor);
  EXPECT_FALSE(engine.Step());
  const auto stream = engine.Submit(AskFor(20, 3));
  ASSERT_TRUE(stream.ok()) << stream.status();
  int news = 0;
  (*stream)->SetNotify([&] { ++news; });
  clock.Set(1'500'000'000);
  EXPECT_TRUE(engine.Step());  // 16 of the prompt
  EXPECT_EQ(news, 0);
  EXPECT_TRUE(engine.Step());  // the rest, and the first token
  EXPECT_EQ(news, 1);
  EXPECT_EQ((*stream)->Take().ids.size(), 1u);
  EXPECT_TRUE(engine.Step());
  EXPECT_TRUE(engine.Step());
  EXPECT_EQ(news, 3);
  const OutputDelta last = (*stream)->Take();
  EXPECT_TRUE(last.finished);
  EXPECT_EQ(last.ids.size(), 2u);
  const Timings& timings = (*stream)->summary().timings;
  EXPECT_NEAR(timings.queue_s, 0.5, 1e-9);
  EXPECT_NEAR(timings.prefill_s, 0.02, 1e-9);
  EXPECT_NEAR(timings.decode_s, 0.02, 1e-9);
  EXPECT_EQ(clock.NowNs(), 1'540'000'000);
  EXPECT_FALSE(engine.Step());
  EXPECT_EQ(clock.NowNs(), 1'540'000'000);
  EXPECT_EQ(engine.load().steps, 4u);
}

TEST(SteppedEngine, AFullQueueRefusesAndTheEndIsOne) {
  VirtualClock clock;
  clock.Set(1'000'000'000);
  TenMilliseconds executor(&clock);
  Engine engine(SteppedOptions(&clock), &executor);
  std::vector<std::shared_ptr<OutputStream>> streams;
  for (int i = 0; i < 3; ++i) {
    auto stream = engine.Submit(AskFor(4, 30));
    ASSERT_TRUE(stream.ok());
    streams.push_back(*stream);
  }
  EXPECT_TRUE(absl::IsResourceExhausted(engine.Submit(AskFor(4, 30)).status()));
  EXPECT_TRUE(engine.Step());
  EXPECT_EQ(engine.load().running, 2);
  EXPECT_TRUE(engine.Submit(AskFor(4, 30)).ok());
  const auto digests = engine.Stop(ErrorKind{0});
  ASSERT_TRUE(digests.ok());
  EXPECT_EQ(digests->front(), 7u);
  EXPECT_EQ(streams[2]->Take().finished, true);
  EXPECT_FALSE(engine.Step());
  EXPECT_EQ(executor.stops, 1);
}

}  // namespace
}  // namespace lockstep
