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
  pool.Release(id);
  EXPECT_DEATH(pool.Release(id), "taken");
}

BlockTokens Tokens(int32_t first) {
  BlockTokens tokens;
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = first + static_cast<int32_t>(i);
  return tokens;
}

int32_t TakeOne(BlockPool& pool) {
  EXPECT_TRUE(pool.Reserve(1));
  return pool.Take();
}

TEST(BlockPool, APublishedBlockIsFoundByItsTokensAndWhatStandsBefore) {
  BlockPool pool(4);
  const int32_t a = TakeOne(pool), b = TakeOne(pool);
  EXPECT_EQ(pool.Find(-1, Tokens(5)), -1);
  EXPECT_EQ(pool.Publish(-1, Tokens(5), a), a);
  EXPECT_EQ(pool.Publish(a, Tokens(5), b), b);
  EXPECT_EQ(pool.Find(-1, Tokens(5)), a);
  EXPECT_EQ(pool.Find(a, Tokens(5)), b);
  EXPECT_EQ(pool.Find(b, Tokens(5)), -1);
  EXPECT_EQ(pool.Find(-1, Tokens(6)), -1);
  // Nobody holds them, they take no room from anyone, and are still found.
  pool.Drop(b);
  pool.Drop(a);
  EXPECT_EQ(pool.used(), 0);
  EXPECT_EQ(pool.available(), 4);
  EXPECT_EQ(pool.Find(a, Tokens(5)), b);
}

TEST(BlockPool, WhatWasHeldLongestAgoGoesFirstAndNothingBeforeWhatStandsBehindIt) {
  BlockPool pool(4);
  const int32_t a = TakeOne(pool), b = TakeOne(pool), c = TakeOne(pool);
  pool.Publish(-1, Tokens(1), a);
  pool.Publish(a, Tokens(2), b);
  pool.Hold(a);  // by another sequence, which goes on elsewhere
  pool.Publish(a, Tokens(3), c);
  for (const int32_t block : {b, a, c, a}) pool.Drop(block);
  EXPECT_EQ(TakeOne(pool), 3) << "one that holds nothing goes before all that do";
  EXPECT_EQ(TakeOne(pool), b);
  EXPECT_EQ(pool.Find(a, Tokens(2)), -1);
  EXPECT_EQ(pool.Find(a, Tokens(3)), c);
  EXPECT_EQ(TakeOne(pool), c);
  EXPECT_EQ(pool.Find(-1, Tokens(1)), a);
  pool.Hold(a);
  EXPECT_FALSE(pool.Reserve(1)) << "what is held stays";
  pool.Drop(a);
  EXPECT_EQ(TakeOne(pool), a);
  EXPECT_EQ(pool.Find(-1, Tokens(1)), -1);
}

TEST(BlockPool, OfTwoBlocksWithTheSameTokensOneIsShared) {
  BlockPool pool(4);
  const int32_t first = TakeOne(pool), second = TakeOne(pool), next = TakeOne(pool);
  EXPECT_EQ(pool.Publish(-1, Tokens(1), first), first);
  EXPECT_EQ(pool.Publish(-1, Tokens(1), second), first);
  EXPECT_EQ(pool.Publish(first, Tokens(2), next), next);
  // The second sequence gives back its own block, and holds the first one's until then.
  pool.Drop(first);
  EXPECT_EQ(pool.used(), 3);
  pool.Drop(next);
  pool.Drop(first);
  pool.Release(second);
  EXPECT_EQ(pool.used(), 0);
  EXPECT_EQ(pool.Find(first, Tokens(2)), next);
}

TEST(BlockPool, APromiseIsKeptWhenADuplicateIsPublished) {
  BlockPool pool(3);
  const int32_t first = TakeOne(pool), second = TakeOne(pool);
  pool.Publish(-1, Tokens(1), first);
  pool.Drop(first);
  // What is idle and what is free is promised: to hold the idle one would break that.
  ASSERT_TRUE(pool.Reserve(2));
  EXPECT_EQ(pool.Publish(-1, Tokens(1), second), -1);
  EXPECT_EQ(pool.available(), 0);
  pool.Take();
  pool.Take();
  EXPECT_EQ(pool.Publish(-1, Tokens(1), second), second) << "the other one is gone";
}

TEST(BlockPoolDeathTest, HoldersAreCounted) {
  BlockPool pool(2);
  const int32_t block = TakeOne(pool);
  EXPECT_DEATH(pool.Hold(block), "published");
  pool.Publish(-1, Tokens(1), block);
  EXPECT_DEATH(pool.Release(block), "published");
  pool.Drop(block);
  EXPECT_DEATH(pool.Drop(block), "holders");
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
      for (const int32_t id : owner.blocks) pool.Release(id);
      for (const int32_t id : owner.blocks) used.erase(id);
      owners.erase(owners.begin() + static_cast<std::ptrdiff_t>(index));
    }
    ASSERT_EQ(pool.used(), static_cast<int64_t>(used.size()));
  }
}

}  // namespace
}  // namespace lockstep
