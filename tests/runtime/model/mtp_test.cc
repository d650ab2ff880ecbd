// The draft layer (multi-token prediction) against transformers' results, on every kernel set and
// at every number of ranks; and that wrong drafts leave no trace.
#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/compare.h"
#include "tests/support/drafts.h"
#include "tests/support/golden.h"
#include "tests/support/ranks.h"
#include "tests/support/sequences.h"

namespace lockstep {
namespace {

using testing::Draft;
using testing::Golden;
using testing::Kept;
using testing::OpenModel;
using testing::RelativeError;
using testing::RowsAt;
using testing::RunRanks;
using testing::SourcePath;
using testing::Step;
using testing::TestModel;
using testing::TestModelOptions;

constexpr int64_t kHidden = 64;
constexpr int64_t kVocab = 1000;

struct Case {
  std::string kernels;
  int ranks;
  std::vector<double> shares;
  std::string collective = "tcp";
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.kernels << ", " << c.ranks << " ranks"; }

std::string NameOf(const ::testing::TestParamInfo<Case>& info) {
  const Case& c = info.param;
  return testing::CaseName(
      c.kernels + "_" + std::to_string(c.ranks) + (c.shares.empty() ? "_even" : "_uneven"),
      info.index);
}

Golden TinyB() { return Golden(SourcePath("tests/goldens/goldens/tiny-b.safetensors")); }

// The ranks' vocabulary slices side by side: [rows, vocab].
std::vector<float> Join(const std::vector<Kept>& ranks, int64_t rows) {
  std::vector<const std::vector<float>*> slices;
  for (const Kept& rank : ranks) slices.push_back(&rank.logits);
  return testing::JoinSlices(slices, rows);
}

std::vector<float> LastRow(const std::vector<float>& rows) {
  return std::vector<float>(rows.end() - kHidden, rows.end());
}

class DraftGolden : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const auto backend = kernels::MakeBackend(GetParam().kernels);
    if (!backend.ok()) GTEST_SKIP() << backend.status().message();
  }
  // Runs `body` on every rank; returns what each came back with.
  static std::vector<Kept> Run(const std::function<Kept(Model&)>& body,
                               const std::string& directory = "tests/goldens/models/tiny-b") {
    const Case& c = GetParam();
    std::vector<Kept> results(static_cast<size_t>(c.ranks));
    RunRanks(c.ranks, c.collective, [&](Membership&, Group& group) {
      TestModelOptions options;
      options.directory = SourcePath(directory);
      options.kernels = c.kernels;
      options.shares = c.shares;
      options.draft_layer = true;
      const TestModel model = OpenModel(options, group);
      ASSERT_NE(model.model, nullptr);
      results[static_cast<size_t>(group.rank())] = body(*model.model);
    });
    for (const Kept& rank : results) {
      EXPECT_EQ(rank.hidden, results[0].hidden) << "ranks hold different bits";
      EXPECT_EQ(rank.digest, results[0].digest);
    }
    return results;
  }
};

TEST_P(DraftGolden, DraftsOfAPromptAgreeWithTransformers) {
  const Golden golden = TinyB();
  const auto ranks = Run([&](Model& model) {
    const auto main = model.Step(RowsAt(golden.Ids("main.input_ids"), 0));
    EXPECT_TRUE(main.ok()) << main.status();
    // Straight from where the step left them.
    return Draft(model, RowsAt(golden.Ids("mtp.next_ids"), 0), main->all_hidden);
  });
  const double error = RelativeError(Join(ranks, 40), golden.Floats("mtp.logits"));
  RecordProperty("relative_error", std::to_string(error));
  EXPECT_LE(error, 2e-5);
  EXPECT_LE(RelativeError(ranks[0].hidden, golden.Floats("mtp.hidden_post_norm")), 2e-5);
}

TEST_P(DraftGolden, ASecondDraftAgreesFromEitherKindOfHiddenState) {
  const Golden golden = TinyB();
  const auto second = [&](bool after_norm) {
    return Run([&](Model& model) {
      const auto tokens = golden.Ids("main.input_ids");
      const Kept main = Step(model, RowsAt(tokens, 0));
      const Kept first = Draft(model, RowsAt(golden.Ids("mtp.next_ids"), 0), main.hidden);
      const auto hidden = LastRow(after_norm ? first.hidden : golden.Floats("mtp.hidden_pre_norm"));
      return Draft(model, RowsAt(golden.Ids("mtp.draft1"), static_cast<int32_t>(tokens.size())),
                   hidden);
    });
  };
  EXPECT_LE(RelativeError(Join(second(true), 1), golden.Floats("mtp.step2_logits_from_post_norm")),
            2e-5);
  EXPECT_LE(RelativeError(Join(second(false), 1), golden.Floats("mtp.step2_logits_from_pre_norm")),
            2e-5);
}

TEST_P(DraftGolden, StepsAndOutputsChangeNoBit) {
  const Golden golden = TinyB();
  const auto tokens = golden.Ids("main.input_ids");
  const auto next = golden.Ids("mtp.next_ids");
  const auto whole = Run([&](Model& model) {
    const Kept main = Step(model, RowsAt(tokens, 0));
    return Draft(model, RowsAt(next, 0), main.hidden);
  });
  const auto parted = Run([&](Model& model) {
    Kept last;
    for (int32_t begin = 0; begin < 40; begin += 10) {
      const auto part = [&](const std::vector<int32_t>& ids) {
        Batch batch =
            RowsAt(std::vector<int32_t>(ids.begin() + begin, ids.begin() + begin + 10), begin);
        batch.output_rows = {9};
        return batch;
      };
      const Kept main = Step(model, part(tokens));
      EXPECT_EQ(main.hidden, LastRow(main.all_hidden));
      last = Draft(model, part(next), main.all_hidden);
    }
    return last;
  });
  for (size_t rank = 0; rank < whole.size(); ++rank) {
    const auto width = static_cast<ptrdiff_t>(parted[rank].logits.size());
    EXPECT_EQ(parted[rank].logits,
              std::vector<float>(whole[rank].logits.end() - width, whole[rank].logits.end()));
    EXPECT_EQ(parted[rank].hidden, LastRow(whole[rank].hidden));
  }
}

TEST_P(DraftGolden, RejectedRowsLeaveNoTrace) {
  const Golden golden = TinyB();
  const auto tokens = golden.Ids("main.input_ids");
  const auto next = golden.Ids("mtp.next_ids");
  const auto from = [](const std::vector<int32_t>& ids, int begin, int count) {
    return std::vector<int32_t>(ids.begin() + begin, ids.begin() + begin + count);
  };
  // 30 tokens; perhaps one right row and three wrong ones; then what really follows: the main
  // model's rows and the draft layer's.
  const auto run = [&](bool wrong, bool drafted) {
    return Run([&, wrong, drafted](Model& model) {
      const Kept prompt = Step(model, RowsAt(from(tokens, 0, 30), 0));
      Draft(model, RowsAt(from(next, 0, 30), 0), prompt.hidden);
      if (wrong) {
        const Batch rejected = RowsAt({tokens[30], 17, 4, 901}, 30);
        const Kept guessed = Step(model, rejected);
        Draft(model, RowsAt({17, 4, 901, 3}, 30), guessed.hidden);
      }
      const Kept main = Step(model, RowsAt(from(tokens, 30, 5), 30));
      return drafted ? Draft(model, RowsAt(from(next, 30, 5), 30), main.hidden) : main;
    });
  };
  EXPECT_EQ(run(true, false), run(false, false));
  EXPECT_EQ(run(true, true), run(false, true));
}

std::string DraftError(Model& model, const Batch& batch) {
  const std::vector<float> hidden(static_cast<size_t>(batch.rows() * kHidden));
  const auto output = model.Draft(batch, hidden);
  return output.ok() ? "" : std::string(output.status().message());
}

TEST_P(DraftGolden, AGapInTheDraftCacheIsAnError) {
  Run([&](Model& model) {
    const auto hole = ::testing::HasSubstr("does not continue the draft layer's cache");
    EXPECT_THAT(DraftError(model, RowsAt({5, 6}, 3)), hole);
    EXPECT_EQ(DraftError(model, RowsAt({5, 6, 7}, 0)), "");
    EXPECT_THAT(DraftError(model, RowsAt({5}, 4)),
                ::testing::AllOf(hole, ::testing::HasSubstr("position 4 of sequence 0")));
    EXPECT_EQ(DraftError(model, RowsAt(std::vector<int32_t>(17, 8), 3)), "");  // up to 19
    EXPECT_EQ(DraftError(model, RowsAt({9}, 10)), "");                         // back to 10
    EXPECT_THAT(DraftError(model, RowsAt({9}, 12)), hole);
    EXPECT_THAT(DraftError(model, RowsAt({9}, 17)), hole);  // in the next block
    EXPECT_EQ(DraftError(model, RowsAt(std::vector<int32_t>(6, 8), 11)), "");
    Batch moved = RowsAt({9}, 17);  // the second block in another sequence's table
    moved.block_tables = {{3, 2}};
    EXPECT_THAT(DraftError(model, moved), hole);
    // A whole table used again: its first block is filled anew, so its second one is of another.
    EXPECT_EQ(DraftError(model, RowsAt(std::vector<int32_t>(20, 8), 0)), "");
    EXPECT_EQ(DraftError(model, RowsAt(std::vector<int32_t>(16, 9), 0)), "");
    EXPECT_THAT(DraftError(model, RowsAt({9}, 18)), hole);
    EXPECT_EQ(DraftError(model, RowsAt({9, 9, 9}, 16)), "");
    return Kept();
  });
}

TEST_P(DraftGolden, OutputRowsThatDoNotAscendAreAnError) {
  Run([&](Model& model) {
    for (const std::vector<int32_t>& rows : {std::vector<int32_t>{1, 0}, {1, 1}, {0, 0}, {-1}}) {
      Batch batch = RowsAt({5, 6, 7}, 0);
      batch.output_rows = rows;
      const auto output = model.Step(batch);
      EXPECT_TRUE(!output.ok() && output.status().message().find("ascend") != std::string::npos);
    }
    return Kept();
  });
}

TEST_P(DraftGolden, PositionsThatDoNotAscendAreAnError) {
  Run([&](Model& model) {
    for (const std::vector<int32_t>& positions : {std::vector<int32_t>{0, 0}, {1, 0}}) {
      Batch batch = RowsAt({5, 6}, 0);
      batch.positions = positions;
      const auto output = model.Step(batch);
      EXPECT_FALSE(output.ok());
      EXPECT_THAT(std::string(output.status().message()),
                  ::testing::HasSubstr("not behind its sequence's"));
    }
    return Kept();
  });
}

// Rounded weights flip an expert here and there, and that row is then far off.
TEST_P(DraftGolden, MostDraftsOfAQuantizedFileAreNearThoseOfItsOriginal) {
  const Golden golden = TinyB();
  const auto ranks = Run(
      [&](Model& model) {
        return Draft(model, RowsAt(golden.Ids("mtp.next_ids"), 0),
                     golden.Floats("main.hidden.final_norm"));
      },
      "tests/goldens/models/tiny-b-Q8_0.gguf");
  const auto got = Join(ranks, 40);
  const auto want = golden.Floats("mtp.logits");
  int near = 0;
  for (int64_t row = 0; row < 40; ++row) {
    const auto of = [&](const std::vector<float>& all) {
      return std::vector<float>(all.begin() + row * kVocab, all.begin() + (row + 1) * kVocab);
    };
    if (RelativeError(of(got), of(want)) < 0.03) ++near;
  }
  RecordProperty("near", near);
  EXPECT_GE(near, 32);
}

std::vector<Case> Cases() {
  return {{"ref", 1, {}},
          {"cpu", 1, {}},
          {"cpu", 2, {}},
          {"cpu", 3, {}},
          {"cpu", 5, {}},
          {"ref", 2, {1, 4}},
          {"cpu/avx2", 2, {3, 2}, "shm"},
          {"cpu/baseline", 3, {5, 1, 2}},
          {"cpu", 3, {1, 0, 1}},
          {"cpu", 5, {0.1, 1, 3, 0.2, 1}, "shm"}};
}

INSTANTIATE_TEST_SUITE_P(TinyB, DraftGolden, ::testing::ValuesIn(Cases()), NameOf);

}  // namespace
}  // namespace lockstep
