// Answers that follow a constraint: what the ranks keep of it, and what the engine says where it
// cannot be kept. The grammar itself is tested in runtime/grammar.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/runtime/engine/arrangement.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using testing::Answer;
using testing::Arrangement;
using testing::Ask;
using ::testing::HasSubstr;
using testing::kFakeVocab;

// Token i of an answer must leave i % 7 when divided by 7, but for what is broken on a rank.
bool Fits(size_t index, int64_t id) { return id % 7 == static_cast<int64_t>(index % 7); }

class Sevens final : public TokenConstraint {
 public:
  Sevens(bool broken, bool slow) : broken_(broken), slow_(slow) {}
  void Append(int32_t) override { ++count_; }
  std::span<const uint32_t> Allowed() override {
    set_.assign((kFakeVocab + 31) / 32, 0);
    for (int64_t id = 0; id < kFakeVocab; ++id) {
      if (Fits(count_, id) || broken_) set_[id / 32] |= 1u << (id % 32);
    }
    return set_;
  }
  bool too_slow() const override { return slow_ && count_ == 3; }

 private:
  size_t count_ = 0;
  bool broken_, slow_;
  std::vector<uint32_t> set_;
};

class SevensMaker final : public TokenConstraints {
 public:
  Status Check(const std::string& grammar) override {
    return grammar == "bad" ? RequestError("this grammar is bad") : OkStatus();
  }
  std::unique_ptr<TokenConstraint> Start(const std::string& grammar) override {
    return std::make_unique<Sevens>(broken, grammar == "slow");
  }
  uint64_t digest() const override { return own_digest; }

  bool broken = false;
  uint64_t own_digest = 5;
};

Request Constrained(std::vector<int32_t> prompt, int64_t max_tokens, std::string grammar = "7") {
  Request request = Ask(std::move(prompt), max_tokens);
  request.grammar = std::move(grammar);
  return request;
}

// The greedy continuation among what fits, by the book.
std::vector<int32_t> Reference(std::vector<int32_t> tokens, size_t count) {
  std::vector<int32_t> output;
  while (output.size() < count) {
    const uint64_t hash = testing::HistoryHash(tokens);
    int32_t best = -1;
    for (int32_t id = 0; id < kFakeVocab; ++id) {
      if (!Fits(output.size(), id)) continue;
      if (best < 0 || testing::FakeLogit(hash, id) > testing::FakeLogit(hash, best)) best = id;
    }
    output.push_back(best);
    tokens.push_back(best);
  }
  return output;
}

class ConstrainedTest : public ::testing::Test {
 protected:
  Arrangement On(int ranks) {
    Arrangement setup;
    setup.ranks = ranks;
    setup.constraints = [this](int rank) { return &makers_[rank]; };
    return setup;
  }
  std::map<int, SevensMaker> makers_ = {{0, {}}, {1, {}}, {2, {}}};
};

TEST_F(ConstrainedTest, AnswersFollowOnAnyNumberOfRanksBesideOthersThatAreFree) {
  for (int ranks = 1; ranks <= 3; ++ranks) {
    testing::WithEngine(On(ranks), [&](Engine& engine) {
      const auto one = engine.Submit(Constrained({5, 6, 7}, 20)).value();
      const auto free = engine.Submit(Ask({5, 6, 7}, 20)).value();
      const auto two = engine.Submit(Constrained({9}, 12)).value();
      EXPECT_EQ(testing::Collect(*one).all.ids, Reference({5, 6, 7}, 20)) << ranks;
      EXPECT_EQ(testing::Collect(*two).all.ids, Reference({9}, 12)) << ranks;
      EXPECT_EQ(testing::Collect(*free).all.ids, testing::GreedyReference({5, 6, 7}, 20)) << ranks;
    });
  }
}

TEST_F(ConstrainedTest, AnAnswerThatWasPreemptedGoesOnWhereItWas) {
  Arrangement setup = On(2);
  setup.limits.max_sequences = 1;
  Engine* running = nullptr;
  std::shared_ptr<OutputStream> urgent;
  // The first is at its 20th token when one that is more urgent wants its place.
  setup.make_decoder = [&, made = 0]() mutable -> std::unique_ptr<TokenDecoder> {
    if (made++ > 0) return std::make_unique<testing::LetterDecoder>();
    return std::make_unique<testing::ActingDecoder>([&](int token) {
      if (token == 20) urgent = running->Submit(Ask({1, 2}, 40)).value();
    });
  };
  testing::WithEngine(setup, [&](Engine& engine) {
    running = &engine;
    Request request = Constrained({5, 6, 7}, 60);
    request.priority = 1;
    const Answer answer = testing::Submit(engine, std::move(request));
    EXPECT_EQ(answer.all.ids, Reference({5, 6, 7}, 60));
    ASSERT_NE(urgent, nullptr);
    EXPECT_EQ(testing::Collect(*urgent).all.ids, testing::GreedyReference({1, 2}, 40));
    EXPECT_GE(engine.counts().preemptions, 1u);
  });
}

TEST_F(ConstrainedTest, ARankThatAllowsOtherTokensIsNamed) {
  makers_[1].broken = true;
  testing::WithEngine(On(3), [](Engine& engine) {
    const Answer answer = testing::Submit(engine, Constrained({5, 6, 7}, 20));
    EXPECT_EQ(answer.summary.reason, FinishReason::kError);
    EXPECT_THAT(MessageOf(answer.summary.error),
                AllOf(HasSubstr(testing::FakeNames(3)[1]), HasSubstr("other bits")));
  });
}

TEST_F(ConstrainedTest, RanksWithOtherGrammarsAreRefusedAtTheStart) {
  for (const auto& [digest, words] : {std::pair(uint64_t{6}, "another tokenizer"),
                                      std::pair(uint64_t{0}, "without structured output")}) {
    makers_[1].own_digest = digest;
    testing::OnRanks(2, [&, words = words](Group& group) {
      testing::FakeModel model({16, 4, 64, 8}, testing::FakeSlice(group.rank(), 2));
      const auto executor =
          TensorParallelExecutor::Create(model, group, testing::FakeSlice(group.rank(), 2),
                                         testing::FakeNames(2), nullptr, &makers_[group.rank()]);
      ASSERT_FALSE(executor.ok());
      EXPECT_EQ(KindOf(executor.status()), ErrorKind::kUsage);
      EXPECT_THAT(MessageOf(executor.status()),
                  AllOf(HasSubstr(testing::FakeNames(2)[1]), HasSubstr(words)));
    });
  }
}

TEST_F(ConstrainedTest, WhatCannotBeKeptIsRefusedBeforeItRuns) {
  testing::WithEngine(On(1), [](Engine& engine) {
    EXPECT_THAT(MessageOf(engine.Submit(Constrained({1}, 5, "bad")).status()),
                HasSubstr("this grammar is bad"));
  });
  testing::WithEngine(Arrangement(), [](Engine& engine) {
    const Status status = engine.Submit(Constrained({1}, 5)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(MessageOf(status), HasSubstr("deploy/install_xgrammar.sh"));
  });
}

TEST_F(ConstrainedTest, AnAnswerWhoseGrammarIsTooSlowEndsAlone) {
  testing::WithEngine(On(2), [](Engine& engine) {
    // Though its token of that step would end it otherwise.
    Request request = Constrained({5, 6, 7}, 20, "slow");
    request.stop.token_ids = {Reference({5, 6, 7}, 4)[3]};
    const auto slow = engine.Submit(std::move(request)).value();
    const auto other = engine.Submit(Constrained({9}, 12)).value();
    const Answer answer = testing::Collect(*slow);
    EXPECT_EQ(answer.summary.reason, FinishReason::kError);
    EXPECT_THAT(MessageOf(answer.summary.error), HasSubstr("too slow"));
    EXPECT_EQ(testing::Collect(*other).all.ids, Reference({9}, 12));
  });
}

}  // namespace
}  // namespace lockstep
