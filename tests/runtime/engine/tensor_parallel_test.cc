// What the executors of a group do beyond answering requests, which engine_test.cc has.
#include "runtime/engine/tensor_parallel.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/runtime/engine/fake_model.h"
#include "tests/runtime/engine/thread_group.h"

namespace lockstep {
namespace {

using testing::FakeModel;
using testing::FakeNames;
using testing::FakeSlice;
using testing::kFakeVocab;

TEST(TensorParallel, RanksWithOtherLimitsAreRefusedWithBothValues) {
  testing::OnRanks(2, [](Group& group) {
    FakeModel model({16, 4, group.rank() == 0 ? 64 : 65, 8}, FakeSlice(group.rank(), 2));
    const auto executor =
        TensorParallelExecutor::Create(model, group, FakeSlice(group.rank(), 2), FakeNames(2));
    ASSERT_FALSE(executor.ok());
    EXPECT_EQ(KindOf(executor.status()), ErrorKind::kUsage);
    EXPECT_NE(MessageOf(executor.status()).find("context 65 and 64"), std::string::npos)
        << executor.status();
  });
}

TEST(TensorParallel, GathersRawRowsEveryRanksHiddenStatesAndDrafts) {
  testing::OnRanks(3, [](Group& group) {
    FakeModel model({16, 16, 64, 8}, FakeSlice(group.rank(), 3));
    auto executor =
        TensorParallelExecutor::Create(model, group, FakeSlice(group.rank(), 3), FakeNames(3));
    ASSERT_TRUE(executor.ok());
    if (group.rank() != 0) {
      EXPECT_TRUE((*executor)->RunWorker().ok());
      return;
    }
    StepPlan plan;
    plan.step = 1;
    NewSequence start;
    start.tokens = {5, 6, 7};
    plan.started = {start};
    plan.growth = {{0, {3}}};
    plan.spans = {{0, 0, 3, SpanOutput::kRawDraft}};
    StepOutcome outcome;
    ASSERT_TRUE((*executor)->Execute(plan, &outcome).ok());
    ASSERT_EQ(outcome.raw_rows, 3);
    ASSERT_EQ(outcome.raw_hidden.size(), 3u);
    EXPECT_TRUE(outcome.tokens.empty());
    std::vector<int32_t> history;
    for (int row = 0; row < 3; ++row) {
      history.push_back(start.tokens[row]);
      const uint64_t hash = testing::HistoryHash(history);
      for (int64_t id = 0; id < kFakeVocab; ++id) {
        ASSERT_EQ(outcome.raw_logits[row * kFakeVocab + id], testing::FakeLogit(hash, id));
      }
    }
    EXPECT_EQ(outcome.raw_hidden[1], outcome.raw_hidden[0]);
    // Two drafts: the third token has no next one.
    std::vector<float> drafts;
    for (int row = 0; row < 2; ++row) {
      const float state = outcome.raw_hidden[0][row * testing::kFakeHidden];
      const uint64_t hash = MixBits(static_cast<uint64_t>(start.tokens[row + 1]) * 1'000 + row +
                                    static_cast<uint64_t>(state * 0x1p20f));
      for (int64_t id = 0; id < kFakeVocab; ++id) drafts.push_back(testing::FakeLogit(hash, id));
    }
    EXPECT_EQ(outcome.draft_logits, drafts);
    ASSERT_TRUE((*executor)->Stop(2, ErrorKind{0}).ok());
  });
}

}  // namespace
}  // namespace lockstep
