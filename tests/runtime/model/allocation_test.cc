// Inside a step nothing is allocated: decoding runs on what was sized at start.
#include <atomic>
#include <cstdlib>
#include <new>
#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "tests/support/golden.h"
#include "tests/support/ranks.h"
#include "tests/support/sequences.h"

namespace {
thread_local bool counting = false;
std::atomic<int> allocations{0};
}  // namespace

void* operator new(size_t bytes) {
  if (counting) ++allocations;
  if (void* memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace lockstep {
namespace {

TEST(Step, AllocatesNothing) {
  for (const auto& model_and_ranks : {std::pair{"tiny-b", 1}, {"tiny-b", 2}, {"tiny-flash", 2}}) {
    const std::string name = model_and_ranks.first;
    const int ranks = model_and_ranks.second;
    testing::RunRanks(ranks, "tcp", [&](Membership&, Group& group) {
      testing::TestModelOptions options;
      options.directory = testing::SourcePath("tests/goldens/models/" + name);
      options.draft_layer = std::string(name) == "tiny-b";
      const auto model = testing::OpenModel(options, group);
      Batch batch{.tokens = {5, 6, 7},
                  .positions = {0, 1, 0},
                  .sequences = {0, 0, 1},
                  .block_tables = {{0}, {1}},
                  .output_rows = {1, 2}};
      const auto first = model.model->Step(batch);  // the first exchange may size its buffers
      ASSERT_TRUE(first.ok());
      if (options.draft_layer) {
        ASSERT_TRUE(model.model->Draft(batch, first->all_hidden).ok());
      }
      for (int round = 0; round < 3; ++round) {
        model.model->SetOverlap(round == 2 ? 2 : 0);  // in halves
        for (size_t row = 0; row < 3; ++row) batch.positions[row] += row < 2 ? 2 : 1;
        counting = true;
        const auto output = model.model->Step(batch);
        const bool ok = output.ok() && (!options.draft_layer ||
                                        model.model->Draft(batch, output->all_hidden).ok());
        counting = false;
        ASSERT_TRUE(ok);
      }
    });
    EXPECT_EQ(allocations.load(), 0) << name << " " << ranks << " ranks";
  }
}

TEST(CountingNew, SeesAllocations) {
  counting = true;
  operator delete(operator new(8));  // spelled out: a new-expression may be optimized away
  counting = false;
  EXPECT_GE(allocations.exchange(0), 1);
}

}  // namespace
}  // namespace lockstep
