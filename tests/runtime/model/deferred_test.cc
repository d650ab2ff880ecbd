// The model over a backend whose ops come late, as a device's: the same bits, since it waits
// wherever the host takes part; and every one of its waits is needed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "runtime/model/layer_walk.h"
#include "tests/support/compare.h"
#include "tests/support/contrary_backend.h"
#include "tests/support/deferred_backend.h"
#include "tests/support/drafts.h"
#include "tests/support/golden.h"
#include "tests/support/ranks.h"
#include "tests/support/sequences.h"

namespace lockstep {
namespace {

using testing::DeferredBackend;
using testing::DeferredOptions;
using testing::Golden;
using testing::Kept;
using testing::OpenModel;
using testing::RowsAt;
using testing::RunRanks;
using testing::SourcePath;
using testing::TestModel;
using testing::TestModelOptions;

struct Case {
  std::string model;
  int ranks = 1;
  bool halves = false;
  bool draft = false;
  bool share_choices = false;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.model << ", " << c.ranks << " ranks"; }

// What a rank saw of some steps: a prompt of which the last row alone is wanted, two sequences
// together, a token; drafts of the prompt.
struct Seen {
  std::vector<Kept> outputs;
  std::vector<uint64_t> weight_bytes;
  bool failed = false;
  bool operator==(const Seen&) const = default;
};

void Keep(const StatusOr<StepOutput>& output, Seen* seen) {
  if (!output.ok()) {
    seen->failed = true;
    return;
  }
  seen->outputs.emplace_back(*output);
  seen->weight_bytes.push_back(output->weight_bytes);
}

Seen RunSteps(Model& model, const Case& c) {
  Seen seen;
  const std::vector<int32_t> prompt = {5, 99, 3, 17, 256, 8, 41, 777, 12};
  Batch first = RowsAt(prompt, 0);
  first.output_rows = {8};
  const StatusOr<StepOutput> output = model.Step(first);
  Keep(output, &seen);
  if (c.draft && output.ok()) {
    const std::vector<float> hidden(output->all_hidden.begin(), output->all_hidden.end());
    Batch next = RowsAt({99, 3, 17, 256, 8, 41, 777, 12, 30}, 0);
    Keep(model.Draft(next, hidden), &seen);
  }
  Batch second{.tokens = {30, 31, 6, 7, 900},
               .positions = {9, 10, 0, 1, 2},
               .sequences = {0, 0, 1, 1, 1},
               .block_tables = {{7, 2}, {4}},
               .output_rows = {1, 2, 4}};
  Keep(model.Step(second), &seen);
  Keep(model.Step(RowsAt({44}, 11)), &seen);
  return seen;
}

struct Waits {
  int finishes = 0;
  uint64_t allocated_bytes = 0;
};

// The steps on all ranks; with options over a deferred backend. By rank.
std::vector<Seen> StepsOn(const Case& c, const DeferredOptions* deferred, Waits* waits = nullptr) {
  std::vector<Seen> seen(static_cast<size_t>(c.ranks));
  RunRanks(c.ranks, "tcp", [&](Membership&, Group& group) {
    TestModelOptions options;
    options.directory = SourcePath("tests/goldens/models/" + c.model);
    options.draft_layer = c.draft;
    options.share_choices = c.share_choices;
    options.limits = {.max_rows = 12, .max_outputs = 12, .max_model_len = 64, .kv_blocks = 12};
    DeferredBackend* backend = nullptr;
    options.wrap =
        [&](std::unique_ptr<kernels::Backend> made) -> std::unique_ptr<kernels::Backend> {
      // Another rank's own choices would be others than those that it takes.
      if (c.share_choices && group.rank() != 0)
        made = std::make_unique<testing::ContraryBackend>(std::move(made));
      if (deferred == nullptr) return made;
      auto wrapped = std::make_unique<DeferredBackend>(std::move(made), *deferred);
      backend = wrapped.get();
      return wrapped;
    };
    const TestModel model = OpenModel(options, group);
    ASSERT_NE(model.model, nullptr);
    if (c.halves) model.model->SetOverlap(2);
    seen[static_cast<size_t>(group.rank())] = RunSteps(*model.model, c);
    if (group.rank() != 0 || waits == nullptr || backend == nullptr) return;
    *waits = {backend->finishes(), backend->allocated_bytes()};
    const MemoryPlan& plan = model.model->memory();
    EXPECT_EQ(waits->allocated_bytes, plan.kv_bytes + 64 + plan.scratch_bytes);
  });
  return seen;
}

std::string NameOf(const ::testing::TestParamInfo<Case>& info) {
  const Case& c = info.param;
  return testing::CaseName(c.model + "_" + std::to_string(c.ranks) + (c.halves ? "_halves" : "") +
                               (c.draft ? "_draft" : ""),
                           info.index);
}

class Deferred : public ::testing::TestWithParam<Case> {};

TEST_P(Deferred, HasTheBitsOfOpsThatAreDoneAtOnce) {
  const Case& c = GetParam();
  const DeferredOptions guarded{.guard = !c.halves};
  Waits waits;
  const std::vector<Seen> late = StepsOn(c, &guarded, &waits), at_once = StepsOn(c, nullptr);
  for (const Seen& seen : at_once) ASSERT_EQ(seen.outputs.size(), c.draft ? 4u : 3u);
  EXPECT_TRUE(late == at_once);
  EXPECT_GT(waits.finishes, 0);
}

TEST_P(Deferred, NoWaitCanBeLeftOut) {
  const Case& c = GetParam();
  // Half a step is exchanged by a thread while the other is computed: a race, if it did not wait.
  if (c.halves) GTEST_SKIP() << "the exchange's thread would read what is being written";
  const DeferredOptions all;
  Waits waits;
  const std::vector<Seen> right = StepsOn(c, &all, &waits);
  ASSERT_GT(waits.finishes, 0);
  for (int forgotten = 1; forgotten <= waits.finishes; ++forgotten) {
    const DeferredOptions options{.forgotten = forgotten};
    EXPECT_TRUE(StepsOn(c, &options) != right) << "without wait " << forgotten;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, Deferred,
    ::testing::Values(Case{"tiny-a"}, Case{"tiny-a", 2}, Case{.model = "tiny-b", .draft = true},
                      Case{.model = "tiny-b", .ranks = 2, .draft = true}, Case{"tiny-flash"},
                      Case{"tiny-flash", 3}, Case{"tiny-k-Q4_K_M.gguf"},
                      Case{.model = "tiny-a", .ranks = 2, .halves = true},
                      Case{.model = "tiny-flash", .ranks = 2, .halves = true},
                      Case{.model = "tiny-flash", .ranks = 2, .share_choices = true}),
    NameOf);

// A rank alone need not wait between layers: what it computes there nobody else takes part in.
TEST(DeferredSteps, OfARankAloneWaitForItsEndsAlone) {
  const DeferredOptions options;
  Waits waits;
  StepsOn({"tiny-a"}, &options, &waits);
  // Per step: the embedding, the last hidden states, the logits; once the rows that go on.
  EXPECT_EQ(waits.finishes, 3 * 3 + 2);
}

TEST(DeferredSteps, FaultsAreValues) {
  const Case c{.model = "tiny-b", .draft = true};
  const DeferredOptions all;
  Waits waits;
  StepsOn(c, &all, &waits);
  for (int failing = 1; failing <= waits.finishes; ++failing) {
    const DeferredOptions options{.failing = failing};
    EXPECT_TRUE(StepsOn(c, &options)[0].failed) << failing;
  }
}

// Two stages, each with a backend of its own: what one leaves is there when the other enters.
TEST(DeferredSteps, LeaveRowsForTheNextStage) {
  const auto logits = [](bool deferred) {
    std::vector<float> out;
    RunRanks(1, "tcp", [&](Membership&, Group& group) {
      std::vector<TestModel> stages;
      for (const int stage : {0, 1}) {
        TestModelOptions options;
        options.directory = SourcePath("tests/goldens/models/tiny-flash");
        options.stage = {stage, {1, 1}};
        if (deferred) {
          options.wrap = [](std::unique_ptr<kernels::Backend> inner) {
            return std::make_unique<DeferredBackend>(std::move(inner),
                                                     DeferredOptions{.guard = true});
          };
        }
        stages.push_back(OpenModel(options, group));
        ASSERT_NE(stages.back().model, nullptr);
      }
      Batch batch = RowsAt({5, 99, 3}, 0);
      const auto left = stages[0].model->Step(batch);
      ASSERT_TRUE(left.ok()) << left.status();
      batch.entering = left->leaving;
      const auto output = stages[1].model->Step(batch);
      ASSERT_TRUE(output.ok()) << output.status();
      out.assign(output->logits.begin(), output->logits.end());
    });
    return out;
  };
  const std::vector<float> want = logits(false);
  EXPECT_FALSE(want.empty());
  EXPECT_EQ(logits(true), want);
}

// The weights of a part go as soon as it is computed.
TEST(DeferredSteps, OfOnePartAtATimeAreDoneBeforeItsWeightsGo) {
  const auto logits = [](bool deferred) {
    std::vector<float> out;
    RunRanks(1, "tcp", [&](Membership&, Group& group) {
      auto backend = kernels::MakeBackend("cpu").value();
      if (deferred) {
        backend =
            std::make_unique<DeferredBackend>(std::move(backend), DeferredOptions{.guard = true});
      }
      const auto checkpoint =
          Checkpoint::Open(SourcePath("tests/goldens/models/tiny-b"), {0, {1}}).value();
      LayerWalkOptions options;
      options.backends = {backend.get()};
      options.limits = {.max_rows = 8, .max_outputs = 8, .max_model_len = 64, .kv_blocks = 12};
      options.threads = 1;
      const auto walk = LayerWalk::Plan(*checkpoint, options);
      ASSERT_TRUE(walk.ok()) << walk.status();
      ThreadPool pool(1);
      const auto rows = walk->Run(RowsAt({5, 99, 3}, 0), group, pool);
      ASSERT_TRUE(rows.ok()) << rows.status();
      out = rows->front();
    });
    return out;
  };
  const std::vector<float> want = logits(false);
  EXPECT_FALSE(want.empty());
  EXPECT_EQ(logits(true), want);
}

}  // namespace
}  // namespace lockstep
