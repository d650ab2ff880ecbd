// KV blocks that were read from one model and written into another one give the bits that computing
// them there would have given.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/drafts.h"
#include "tests/support/golden.h"
#include "tests/support/ranks.h"
#include "tests/support/sequences.h"

namespace lockstep {
namespace {

using testing::Draft;
using testing::Kept;
using testing::OpenModel;
using testing::RunRanks;
using testing::Step;
using testing::TestModel;
using testing::TestModelOptions;

struct Case {
  std::string model;
  std::vector<double> shares;
  kernels::CacheType type = kernels::CacheType::kF32;
};
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.model << ", " << c.shares.size() << " ranks, " << NameOf(c.type);
}

std::vector<int32_t> Tokens(int32_t first, int32_t end) {
  std::vector<int32_t> tokens;
  for (int32_t i = first; i < end; ++i) tokens.push_back(i * 7 % 200);
  return tokens;
}

// Rows at positions [first, end) of a sequence that has these blocks.
Batch Rows(int32_t first, int32_t end, const std::vector<int32_t>& table) {
  Batch batch = testing::RowsAt(Tokens(first, end), first);
  batch.block_tables = {table};
  return batch;
}

// The first blocks of one table into those of another.
void Copy(const Model& from, const std::vector<int32_t>& source, Model* to,
          const std::vector<int32_t>& target, size_t count) {
  ASSERT_EQ(from.block_bytes(), to->block_bytes());
  std::vector<std::byte> bytes(static_cast<size_t>(from.block_bytes()));
  for (size_t i = 0; i < count; ++i) {
    from.ReadBlock(source[i], i == 0 ? -1 : source[i - 1], bytes);
    to->WriteBlock(target[i], i == 0 ? -1 : target[i - 1], bytes);
  }
}

class BlockCopy : public ::testing::TestWithParam<Case> {};

TEST_P(BlockCopy, GoesOnWithTheBitsOfWhoComputedIt) {
  const Case& c = GetParam();
  RunRanks(static_cast<int>(c.shares.size()), "tcp", [&](Membership&, Group& group) {
    TestModelOptions options;
    options.directory = testing::SourcePath("tests/goldens/models/" + c.model);
    options.shares = c.shares;
    options.limits.kv_blocks = 20;
    options.limits.cache_type = c.type;
    const TestModel old = OpenModel(options, group);
    options.limits.kv_blocks = 9;
    const TestModel fresh = OpenModel(options, group);
    ASSERT_TRUE(old.model != nullptr && fresh.model != nullptr);
    // What is in the pages before must not matter.
    Step(*fresh.model, Rows(100, 160, {8, 7, 6, 5, 4, 3, 2, 1, 0, 8, 7}));
    const std::vector<int32_t> here = {7, 12, 5, 19}, there = {1, 0, 8, 3};
    const Kept before = Step(*old.model, Rows(0, 48, here));
    ASSERT_FALSE(before.logits.empty());
    ASSERT_NO_FATAL_FAILURE(Copy(*old.model, here, fresh.model.get(), there, 3));
    const Kept want = Step(*old.model, Rows(48, 60, here));
    const Kept got = Step(*fresh.model, Rows(48, 60, there));
    EXPECT_EQ(got.logits, want.logits);
    EXPECT_EQ(got.hidden, want.hidden);
    EXPECT_EQ(got.digest, want.digest);
  });
}

INSTANTIATE_TEST_SUITE_P(Models, BlockCopy,
                         ::testing::Values(Case{"tiny-a", {1}},
                                           Case{"tiny-a", {3, 1}, kernels::CacheType::kQ8},
                                           Case{"tiny-a", {1, 1}, kernels::CacheType::kBF16},
                                           Case{"tiny-flash", {1, 1}},
                                           Case{"tiny-flash", {2, 1}, kernels::CacheType::kQ8}));

// The draft layer's pages go with the others', and so does what is known of them.
TEST(BlockCopy, DraftsGoOnToo) {
  RunRanks(2, "tcp", [&](Membership&, Group& group) {
    TestModelOptions options;
    options.directory = testing::SourcePath("tests/goldens/models/tiny-b");
    options.draft_layer = true;
    options.limits.kv_blocks = 20;
    const TestModel old = OpenModel(options, group);
    const TestModel fresh = OpenModel(options, group), half = OpenModel(options, group);
    ASSERT_TRUE(old.model && fresh.model && half.model);
    const std::vector<int32_t> here = {7, 12, 5}, there = {1, 0, 8};
    const Kept main = Step(*old.model, Rows(0, 32, here));
    const auto states = [&](int32_t first, int32_t end) {
      const auto begin = main.all_hidden.begin();
      return std::vector<float>(begin + first * 64, begin + end * 64);
    };
    Draft(*old.model, Rows(0, 20, here), states(0, 20));
    // Twelve positions of the second block have no draft yet.
    ASSERT_NO_FATAL_FAILURE(Copy(*old.model, here, half.model.get(), there, 2));
    Draft(*old.model, Rows(20, 31, here), states(20, 31));
    const Kept last = Draft(*old.model, Rows(31, 32, here), states(31, 32));
    ASSERT_NO_FATAL_FAILURE(Copy(*old.model, here, fresh.model.get(), there, 2));
    EXPECT_EQ(Draft(*fresh.model, Rows(31, 32, there), states(31, 32)).logits, last.logits);
    const Kept next = Step(*old.model, Rows(32, 33, here));
    EXPECT_EQ(Step(*fresh.model, Rows(32, 33, there)).logits, next.logits);
    const Kept want = Draft(*old.model, Rows(32, 33, here), next.all_hidden);
    EXPECT_EQ(Draft(*fresh.model, Rows(32, 33, there), next.all_hidden).logits, want.logits);
    EXPECT_FALSE(half.model->Draft(Rows(32, 33, there), next.all_hidden).ok());
    Draft(*half.model, Rows(20, 32, there), states(20, 32));
    EXPECT_EQ(Draft(*half.model, Rows(32, 33, there), next.all_hidden).logits, want.logits);
  });
}

}  // namespace
}  // namespace lockstep
