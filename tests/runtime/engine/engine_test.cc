// The whole engine - scheduler, plans, executors, sampler, streams - over ranks that are threads
// and a model without weights.
#include "runtime/engine/engine.h"

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/runtime/engine/arrangement.h"
#include "tests/support/seed.h"

namespace lockstep {
namespace {

using testing::ActingDecoder;
using testing::Answer;
using testing::Arrangement;
using testing::Ask;
using testing::Collect;
using testing::FakeModel;
using testing::FakeNames;
using testing::FakeSlice;
using testing::GreedyReference;
using testing::kFakeVocab;
using testing::LetterDecoder;
using testing::OptionsOf;
using testing::Submit;
using testing::WithEngine;

// Calls `finish` where the engine ends a request: on its own thread, after it took the news.
class HookedDecoder final : public TokenDecoder {
 public:
  explicit HookedDecoder(std::function<void()> finish) : finish_(std::move(finish)) {}
  std::string Push(int32_t) override { return {}; }
  std::string Finish() override {
    finish_();
    return {};
  }

 private:
  const std::function<void()> finish_;
};

TEST(Engine, AnswersGreedilyLikeTheReferenceOnOneToFourRanks) {
  for (int ranks = 1; ranks <= 4; ++ranks) {
    WithEngine({.ranks = ranks}, [&](Engine& engine) {
      const Answer answer = Submit(engine, Ask({3, 1, 4, 1, 5}, 40));
      EXPECT_EQ(answer.all.ids, GreedyReference({3, 1, 4, 1, 5}, 40)) << ranks << " ranks";
      EXPECT_EQ(answer.summary.reason, FinishReason::kLength);
      EXPECT_EQ(answer.summary.usage.prompt_tokens, 5);
      EXPECT_EQ(answer.summary.usage.completion_tokens, 40);
      EXPECT_EQ(answer.all.text.size(), 40u);
      const auto digests = engine.Stop(ErrorKind{0});
      ASSERT_TRUE(digests.ok()) << digests.status();
      ASSERT_EQ(static_cast<int>(digests->size()), ranks);
      for (const uint64_t digest : *digests) EXPECT_EQ(digest, digests->front());
    });
  }
}

std::vector<Request> RandomRequests(int count) {
  std::mt19937 random(lockstep::testing::TestSeed());
  std::vector<Request> requests;
  for (int i = 0; i < count; ++i) {
    std::vector<int32_t> prompt(1 + random() % 90);
    for (int32_t& token : prompt) token = static_cast<int32_t>(random() % kFakeVocab);
    Request request = Ask(std::move(prompt), 1 + random() % 50);
    request.sampling.temperature = static_cast<double>(random() % 3) * 0.7;
    request.sampling.top_p = random() % 2 == 0 ? 1.0 : 0.8;
    request.sampling.top_k = random() % 2 == 0 ? 0 : 10;
    request.sampling.repetition_penalty = random() % 2 == 0 ? 1.0 : 1.2;
    request.sampling.frequency_penalty = random() % 2 == 0 ? 0.0 : 0.5;
    request.sampling.seed = random();
    request.sampling.logprobs = static_cast<int32_t>(random() % 4) - 1;
    requests.push_back(std::move(request));
  }
  return requests;
}

// Sampled requests of all kinds, alone on one rank and all together on three with other chunk
// sizes: the same tokens.
TEST(Engine, ARequestsTokensDependOnNothingButTheRequest) {
  const std::vector<Request> requests = RandomRequests(24);
  std::vector<Answer> alone;
  WithEngine({}, [&](Engine& engine) {
    for (const Request& request : requests) alone.push_back(Submit(engine, request));
  });
  Arrangement together{.ranks = 3};
  together.limits.prefill_rows = 7;
  WithEngine(together, [&](Engine& engine) {
    std::vector<std::shared_ptr<OutputStream>> streams;
    for (const Request& request : requests) streams.push_back(*engine.Submit(request));
    for (size_t i = 0; i < streams.size(); ++i) {
      const Answer answer = Collect(*streams[i]);
      EXPECT_EQ(answer.all.ids, alone[i].all.ids) << "request " << i;
      EXPECT_EQ(answer.all.text, alone[i].all.text);
      ASSERT_EQ(answer.all.logprobs.size(), alone[i].all.logprobs.size());
      for (size_t k = 0; k < answer.all.logprobs.size(); ++k) {
        EXPECT_NEAR(answer.all.logprobs[k].logprob, alone[i].all.logprobs[k].logprob, 1e-12);
      }
    }
    EXPECT_EQ(engine.load().kv_blocks, 200);
  });
}

// Penalties count what was said before, and draws go on where they were.
TEST(Engine, APreemptedRequestGoesOnWithTheSameTokens) {
  std::vector<Request> requests = RandomRequests(6);
  for (Request& request : requests) {
    request.stop.max_tokens = 60;
    request.priority = 1;
  }
  std::vector<Answer> alone;
  WithEngine({}, [&](Engine& engine) {
    for (const Request& request : requests) alone.push_back(Submit(engine, request));
  });
  for (const bool cache : {true, false}) {
    Arrangement setup{.ranks = 2};
    setup.limits.prefix_cache = cache;
    Engine* running = nullptr;
    std::vector<std::shared_ptr<OutputStream>> urgent;
    // The first of the six is at its 20th, 30th and 40th token when three others want its place.
    setup.make_decoder = [&, made = 0]() mutable -> std::unique_ptr<TokenDecoder> {
      if (made++ > 0) return std::make_unique<LetterDecoder>();
      return std::make_unique<ActingDecoder>([&](int token) {
        if (token % 10 != 0 || token < 20 || token > 40) return;
        for (int i = 0; i < 3; ++i) urgent.push_back(*running->Submit(Ask({1, 2, 3}, 7)));
      });
    };
    WithEngine(setup, [&](Engine& engine) {
      running = &engine;
      std::vector<std::shared_ptr<OutputStream>> streams;
      for (const Request& request : requests) streams.push_back(*engine.Submit(request));
      for (size_t i = 0; i < streams.size(); ++i)
        EXPECT_EQ(Collect(*streams[i]).all.ids, alone[i].all.ids) << "request " << i;
      EXPECT_EQ(urgent.size(), 9u);
      for (const auto& stream : urgent)
        EXPECT_EQ(Collect(*stream).all.ids, GreedyReference({1, 2, 3}, 7));
      EXPECT_GE(engine.counts().preemptions, 3u);
    });
  }
}

TEST(Engine, ASecondTurnComputesItsNewTokensOnly) {
  for (const bool cache : {true, false}) {
    Arrangement setup;
    setup.ranks = 2;
    setup.limits.prefix_cache = cache;
    FakeModel* model = nullptr;
    setup.prepare = [&](int rank, FakeModel* made) {
      if (rank == 0) model = made;
    };
    WithEngine(setup, [&](Engine& engine) {
      std::vector<int32_t> conversation;
      for (int32_t i = 0; i < 100; ++i) conversation.push_back(i % 90);
      int64_t there = 0;  // tokens with KV, in whole blocks
      for (int turn = 0; turn < 4; ++turn) {
        const int64_t before = model->rows_seen;
        const auto length = static_cast<int64_t>(conversation.size());
        const Answer answer = Collect(**engine.Submit(Ask(conversation, 10)));
        EXPECT_EQ(answer.all.ids, GreedyReference(conversation, 10)) << "turn " << turn;
        EXPECT_EQ(answer.summary.usage.cached_tokens, cache ? there : 0);
        EXPECT_EQ(model->rows_seen - before, length - (cache ? there : 0) + 9);
        conversation.insert(conversation.end(), answer.all.ids.begin(), answer.all.ids.end());
        there = (static_cast<int64_t>(conversation.size()) - 1) / kBlockTokens * kBlockTokens;
        conversation.insert(conversation.end(), {5, 6, 7});
      }
    });
  }
}

TEST(Engine, StopsAtAStopTokenWhichIsNoText) {
  WithEngine({}, [](Engine& engine) {
    const std::vector<int32_t> reference = GreedyReference({7}, 10);
    Request request = Ask({7}, 10);
    request.stop.token_ids = {reference[3]};
    const Answer answer = Submit(engine, std::move(request));
    const auto first =
        std::find(reference.begin(), reference.end(), reference[3]) - reference.begin();
    EXPECT_EQ(answer.summary.reason, FinishReason::kStop);
    EXPECT_EQ(static_cast<int64_t>(answer.all.ids.size()), first + 1);
    EXPECT_EQ(static_cast<int64_t>(answer.all.text.size()), first);
  });
}

TEST(Engine, StopsAtAStopStringAcrossTokens) {
  WithEngine({.ranks = 2}, [](Engine& engine) {
    const std::string text = Submit(engine, Ask({9, 9}, 30)).all.text;
    Request request = Ask({9, 9}, 30);
    request.stop.texts = {text.substr(10, 3)};
    const Answer answer = Submit(engine, std::move(request));
    EXPECT_EQ(answer.summary.reason, FinishReason::kStop);
    EXPECT_EQ(answer.all.text, text.substr(0, text.find(text.substr(10, 3))));
  });
}

TEST(Engine, WhoHearsOfAnEndFindsItsPlaceFree) {
  WithEngine({}, [](Engine& engine) {
    EngineLoad at_end{.running = -1};
    Request request = Ask({1, 2}, 5);
    request.ended = [&](const Summary&) { at_end = engine.load(); };
    Submit(engine, request);
    EXPECT_EQ(at_end.running, 0);
    EXPECT_EQ(at_end.waiting, 0);
  });
}

TEST(Engine, MaxTokensBeyondTheContextAreCutToIt) {
  Arrangement setup;
  setup.limits.max_model_len = 64;
  WithEngine(setup, [](Engine& engine) {
    EXPECT_EQ(Submit(engine, Ask(std::vector<int32_t>(60, 1), 1'000)).all.ids.size(), 4u);
    EXPECT_EQ(Submit(engine, Ask(std::vector<int32_t>(60, 1), 0)).all.ids.size(), 4u);
  });
}

TEST(Engine, RefusesBadRequestsByName) {
  Arrangement setup;
  setup.limits.max_model_len = 64;
  WithEngine(setup, [](Engine& engine) {
    const auto refused = [&](Request request, const char* text) {
      const auto stream = engine.Submit(std::move(request));
      ASSERT_FALSE(stream.ok()) << text;
      EXPECT_EQ(KindOf(stream.status()), ErrorKind::kRequest);
      EXPECT_EQ(stream.status().code(), absl::StatusCode::kInvalidArgument);
      EXPECT_NE(MessageOf(stream.status()).find(text), std::string::npos) << stream.status();
    };
    refused(Ask({}, 1), "empty");
    refused(Ask(std::vector<int32_t>(64, 1), 1), "context");
    refused(Ask({kFakeVocab}, 1), "token id");
    refused(Ask({-1}, 1), "token id");
    refused(Ask({1}, -1), "max_tokens");
    Request request = Ask({1}, 1);
    request.sampling.top_p = 2;
    refused(request, "top_p");
    request = Ask({1}, 1);
    request.stop.texts = {""};
    refused(request, "stop");
  });
}

TEST(Engine, AFullQueueIsRefusedPolitely) {
  Arrangement setup{.max_queue = 3};
  setup.limits.max_sequences = 1;
  setup.prepare = [](int, FakeModel* model) { model->step_ms = 5; };
  WithEngine(setup, [](Engine& engine) {
    std::vector<std::shared_ptr<OutputStream>> streams;
    Status refusal;
    for (int i = 0; i < 20 && refusal.ok(); ++i) {
      auto stream = engine.Submit(Ask({1, 2}, 100));
      if (stream.ok()) streams.push_back(*stream);
      refusal = stream.status();
    }
    EXPECT_EQ(refusal.code(), absl::StatusCode::kResourceExhausted) << refusal;
    EXPECT_EQ(RetryAfter(refusal), 1);  // none has ended yet
    for (const auto& stream : streams) engine.Cancel(stream->id());
    for (const auto& stream : streams)
      EXPECT_EQ(Collect(*stream).summary.reason, FinishReason::kCancelled);
  });
}

TEST(Engine, ACancelledRequestStopsWithinTwoSteps) {
  int64_t steps_after = 0;
  FakeModel* fake = nullptr;
  Arrangement setup;
  setup.prepare = [&](int, FakeModel* model) {
    model->step_ms = 20;
    fake = model;
  };
  WithEngine(setup, [&](Engine& engine) {
    auto stream = *engine.Submit(Ask({1}, 400));
    ASSERT_TRUE(stream->WaitFor(10'000));
    const uint64_t before = engine.load().steps;
    engine.Cancel(stream->id());
    const Answer answer = Collect(*stream);
    EXPECT_EQ(answer.summary.reason, FinishReason::kCancelled);
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    steps_after = static_cast<int64_t>(engine.load().steps - before);
  });
  EXPECT_LE(steps_after, 2);
}

TEST(Engine, ADeadlineEndsTheRequest) {
  Arrangement setup;
  setup.prepare = [](int, FakeModel* model) { model->step_ms = 10; };
  WithEngine(setup, [](Engine& engine) {
    Request request = Ask({1}, 400);
    request.deadline = Deadline::After(100);
    const Answer answer = Submit(engine, std::move(request));
    EXPECT_EQ(answer.summary.reason, FinishReason::kCancelled);
    EXPECT_EQ(answer.summary.error.code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_LT(answer.all.ids.size(), 400u);
  });
}

TEST(Engine, ALostPeerEndsEveryRequestWithItsNameAlsoWhileIdle) {
  std::atomic<bool> lost{false};
  Arrangement setup;
  setup.health = [&]() -> Status {
    return lost ? PeerLostError("rank 1 (node, pid 1) is gone") : OkStatus();
  };
  setup.prepare = [](int, FakeModel* model) { model->step_ms = 2; };
  WithEngine(setup, [&](Engine& engine) {
    auto stream = *engine.Submit(Ask({1}, 500));
    ASSERT_TRUE(stream->WaitFor(10'000));
    lost = true;
    const Answer answer = Collect(*stream);
    EXPECT_EQ(answer.summary.reason, FinishReason::kError);
    EXPECT_EQ(MessageOf(answer.summary.error), "rank 1 (node, pid 1) is gone");
    EXPECT_EQ(engine.Submit(Ask({1}, 1)).status().code(), absl::StatusCode::kUnavailable);
    EXPECT_FALSE(engine.Stop(ErrorKind{0}).ok());
  });
  lost = false;
  WithEngine(setup, [&](Engine& engine) {
    lost = true;
    const Deadline deadline = Deadline::After(500);
    while (engine.status().ok() && !deadline.Passed())
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    EXPECT_FALSE(engine.status().ok()) << "an idle engine notices within half a second";
  });
}

TEST(Engine, WorksAgainAfterALossOverAnotherExecutorWithItsOwnLimits) {
  std::atomic<bool> lost{false};
  Arrangement setup;
  setup.health = [&]() -> Status {
    return lost ? PeerLostError("rank 1 (node, pid 1) is gone") : OkStatus();
  };
  SchedulerLimits fewer = setup.limits;
  fewer.kv_blocks = 3;
  testing::OnRanks(1, [&](Group& group) {
    const VocabSlice slice = FakeSlice(0, 1);
    const auto executor_for = [&](FakeModel& model) {
      return std::move(*TensorParallelExecutor::Create(model, group, slice, FakeNames(1)));
    };
    const auto model_for = [&](const SchedulerLimits& limits) {
      return FakeModel(
          {limits.max_rows, limits.max_outputs, limits.max_model_len, limits.kv_blocks}, slice);
    };
    FakeModel model = model_for(setup.limits), next_model = model_for(fewer);
    model.step_ms = 2;
    const auto executor = executor_for(model), next_executor = executor_for(next_model);
    Engine engine(OptionsOf(setup), executor.get());
    auto stream = *engine.Submit(Ask({1}, 500));
    ASSERT_TRUE(stream->WaitFor(10'000));
    lost = true;
    EXPECT_EQ(Collect(*stream).summary.reason, FinishReason::kError);
    EXPECT_FALSE(engine.Submit(Ask({1}, 1)).ok());
    lost = false;
    engine.Resume(fewer, next_executor.get());
    EXPECT_TRUE(engine.status().ok());
    const Answer answer = Submit(engine, Ask({1, 2}, 12));
    EXPECT_EQ(answer.summary.reason, FinishReason::kLength);
    EXPECT_EQ(answer.all.ids, GreedyReference({1, 2}, 12));
    EXPECT_EQ(engine.load().kv_blocks, 3);
    const Status large = engine.Submit(Ask(std::vector<int32_t>(300, 1), 1)).status();
    EXPECT_EQ(KindOf(large), ErrorKind::kRequest) << large;
    EXPECT_TRUE(engine.Stop(ErrorKind{0}).ok());
  });
}

TEST(Engine, ARankThatComputesOtherBitsStopsTheServiceByName) {
  Arrangement setup{.ranks = 3};
  setup.prepare = [](int rank, FakeModel* model) { model->corrupt_at = rank == 2 ? 5 : -1; };
  const std::vector<Status> ends = WithEngine(setup, [&](Engine& engine) {
    const Answer answer = Submit(engine, Ask({1}, 50));
    EXPECT_EQ(answer.summary.reason, FinishReason::kError);
    EXPECT_EQ(KindOf(answer.summary.error), ErrorKind::kPeerLost);
    EXPECT_NE(MessageOf(answer.summary.error).find("rank 2 (node, pid 2) computed other bits"),
              std::string::npos)
        << answer.summary.error;
    EXPECT_EQ(answer.all.ids.size(), 4u) << "nothing of the bad step is shown";
  });
  EXPECT_EQ(KindOf(ends[1]), ErrorKind::kPeerLost);
  EXPECT_EQ(KindOf(ends[2]), ErrorKind::kPeerLost);
}

TEST(Engine, ARankWhoseModelFailsEndsAllRanks) {
  Arrangement setup{.ranks = 2};
  setup.prepare = [](int rank, FakeModel* model) { model->fail_at = rank == 1 ? 3 : -1; };
  const std::vector<Status> ends = WithEngine(setup, [&](Engine& engine) {
    EXPECT_EQ(Submit(engine, Ask({1}, 50)).summary.reason, FinishReason::kError);
  });
  EXPECT_FALSE(ends[1].ok());
}

TEST(Engine, AReaderThatTakesNothingHoldsUpNobody) {
  WithEngine({.ranks = 2}, [](Engine& engine) {
    auto slow = *engine.Submit(Ask({1}, 300));
    const Answer quick = Submit(engine, Ask({2}, 300));
    EXPECT_EQ(quick.all.ids.size(), 300u);
    const Answer late = Collect(*slow);
    EXPECT_EQ(late.all.ids, GreedyReference({1}, 300));
  });
}

TEST(Engine, NotifiesUntilTheEndWasTaken) {
  WithEngine({}, [](Engine& engine) {
    auto stream = *engine.Submit(Ask({1}, 50));
    std::atomic<int> calls{0};
    std::atomic<bool> finished{false};
    std::vector<int32_t> ids;
    stream->SetNotify([&] {
      ++calls;
      const OutputDelta delta = stream->Take();
      ids.insert(ids.end(), delta.ids.begin(), delta.ids.end());
      if (delta.finished) finished = true;
    });
    const Deadline deadline = Deadline::After(20'000);
    while (!finished && !deadline.Passed())
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    stream->SetNotify(nullptr);
    EXPECT_TRUE(finished);
    EXPECT_EQ(ids, GreedyReference({1}, 50));
    EXPECT_GT(calls, 0);
  });
}

TEST(Engine, DrainsThenRefuses) {
  const auto slow = [](int, FakeModel* model) { model->step_ms = 2; };  // 200 steps: 0.4 s
  WithEngine({.ranks = 2, .prepare = slow}, [](Engine& engine) {
    auto stream = *engine.Submit(Ask({1}, 200));
    engine.Drain(20);
    EXPECT_FALSE(stream->Take().finished);  // and what has not ended goes on
    engine.Drain(20'000);
    EXPECT_EQ(Collect(*stream).summary.usage.completion_tokens, 200);
    EXPECT_EQ(engine.Submit(Ask({1}, 1)).status().code(), absl::StatusCode::kUnavailable);
  });
}

TEST(Engine, ARequestTakenJustBeforeTheStopEndsToo) {
  Engine* running = nullptr;
  std::vector<std::shared_ptr<OutputStream>> accepted;
  std::thread stopper;
  std::atomic<bool> entered{false};
  Arrangement setup{.max_queue = 3};
  setup.prepare = [](int, FakeModel* model) { model->step_ms = 1; };
  setup.make_decoder = [&] {
    return std::make_unique<HookedDecoder>([&] {
      if (entered.exchange(true)) return;
      stopper = std::thread([&] { (void)running->Stop(ErrorKind{0}); });
      Status refusal;
      while (refusal.code() != absl::StatusCode::kUnavailable) {
        auto stream = running->Submit(Ask({1}, 5));
        if (stream.ok()) accepted.push_back(*stream);
        refusal = stream.status();
      }
    });
  };
  WithEngine(setup, [&](Engine& engine) {
    running = &engine;
    auto first = *engine.Submit(Ask({1}, 400));
    ASSERT_TRUE(first->WaitFor(10'000));
    accepted.push_back(*engine.Submit(Ask({2}, 400)));
    engine.Cancel(first->id());
    (void)Collect(*first);
    stopper.join();
    for (const auto& stream : accepted) {
      EXPECT_TRUE(stream->WaitFor(0) && stream->Take().finished) << "a request is left behind";
    }
  });
}

TEST(Engine, WorkersLearnWhyTheyEnd) {
  std::vector<Status> ends =
      WithEngine({.ranks = 2}, [](Engine& engine) { (void)engine.Stop(ErrorKind{0}); });
  EXPECT_TRUE(ends[1].ok()) << ends[1];
  ends =
      WithEngine({.ranks = 2}, [](Engine& engine) { (void)engine.Stop(ErrorKind::kInterrupted); });
  EXPECT_EQ(KindOf(ends[1]), ErrorKind::kInterrupted);
}

}  // namespace
}  // namespace lockstep
