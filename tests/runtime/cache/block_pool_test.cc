#include "runtime/cache/block_pool.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <set>
#include <vector>

#include "tests/support/seed.h"

namespace lockstep {
namespace {

TEST(BlockPool, ReservesOnlyWhatIsAvailable) {
  BlockPool pool(4);
  EXPECT_TRUE(pool.Reserve(3));
  EXPECT_FALSE(pool.Reserve(2));
  EXPECT_EQ(pool.available(), 1);
  EXPECT_TRUE(pool.Reserve(1));
  EXPECT_EQ(pool.available(), 0);
}

TEST(BlockPool, HandsOutLowestIdsFirst) {
  BlockPool pool(3);
  ASSERT_TRUE(pool.Reserve(2));
  EXPECT_EQ(pool.Take(), 0);
  EXPECT_EQ(pool.Take(), 1);
}

TEST(BlockPool, AnEmptyPoolReservesNothing) {
  BlockPool pool(0);
  EXPECT_TRUE(pool.Reserve(0));
  EXPECT_FALSE(pool.Reserve(1));
}

TEST(BlockPoolDeathTest, ReleasingTwiceIsABug) {
  BlockPool pool(1);
  ASSERT_TRUE(pool.Reserve(1));
  const int32_t id = pool.Take();
  pool.Release({id});
  EXPECT_DEATH(pool.Release({id}), "in_use");
}

TEST(BlockPool, NeverHandsOutABlockTwiceAndKeepsEveryPromise) {
  std::mt19937 random(lockstep::testing::TestSeed());
  BlockPool pool(50);
  struct Owner {
    std::vector<int32_t> blocks;
    int64_t promised = 0;
  };
  std::vector<Owner> owners;
  std::set<int32_t> used;
  for (int turn = 0; turn < 5'000; ++turn) {
    const int64_t count = random() % 12;
    if (random() % 3 == 0 && pool.Reserve(count)) owners.push_back({{}, count});
    if (owners.empty()) continue;
    const size_t index = random() % owners.size();
    Owner& owner = owners[index];
    if (owner.promised > 0 && random() % 4 != 0) {
      const int32_t id = pool.Take();
      ASSERT_TRUE(used.insert(id).second) << "block " << id << " was handed out twice";
      owner.blocks.push_back(id);
      --owner.promised;
    } else {
      pool.Unreserve(owner.promised);
      pool.Release(owner.blocks);
      for (const int32_t id : owner.blocks) used.erase(id);
      owners.erase(owners.begin() + static_cast<std::ptrdiff_t>(index));
    }
    ASSERT_EQ(pool.used(), static_cast<int64_t>(used.size()));
  }
}

}  // namespace
}  // namespace lockstep
