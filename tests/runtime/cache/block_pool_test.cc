#include "runtime/cache/block_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
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

using Chain = std::vector<int32_t>;  // the first token of each block, from the beginning

// The chain that ends in each block of the list.
std::vector<Chain> ChainsOf(const std::vector<ChainedBlock>& list) {
  std::vector<Chain> chains;
  for (const ChainedBlock& block : list) {
    chains.push_back(block.before < 0 ? Chain() : chains.at(static_cast<size_t>(block.before)));
    chains.back().push_back(block.tokens[0]);
  }
  return chains;
}

// Sequences of blocks that begin alike come and go in a small pool. Beside it stands what the pool
// must know in the end: when each chain that is still found was last held.
class Traffic {
 public:
  explicit Traffic(std::mt19937* random) : random_(*random) {}

  void Run(int turns) {
    for (int turn = 0; turn < turns; ++turn) {
      Chain chain(1 + random_() % 6);
      for (int32_t& token : chain) token = static_cast<int32_t>(random_() % 3);
      std::vector<int32_t> held;
      while (held.size() < chain.size()) {
        const int32_t found = pool.Find(Last(held), Tokens(chain[held.size()]));
        if (found < 0) break;
        pool.Hold(found);
        held.push_back(found);
      }
      while (held.size() < chain.size() && pool.Reserve(1)) {
        const int32_t block = pool.Take();
        ASSERT_EQ(pool.Publish(Last(held), Tokens(chain[held.size()]), block), block);
        held.push_back(block);
      }
      chain.resize(held.size());
      for (; !chain.empty(); chain.pop_back(), held.pop_back()) {
        pool.Drop(held.back());
        last_held[chain] = ++clock_;
      }
    }
    std::erase_if(last_held, [&](const auto& entry) { return !Finds(pool, entry.first); });
  }
  static bool Finds(const BlockPool& pool, const Chain& chain) {
    int32_t block = -1;
    for (const int32_t token : chain) {
      block = pool.Find(block, Tokens(token));
      if (block < 0) return false;
    }
    return true;
  }
  // The chains, that were held last first.
  std::vector<Chain> Order() const {
    std::map<int64_t, Chain, std::greater<>> by_time;
    for (const auto& [chain, time] : last_held) by_time[time] = chain;
    std::vector<Chain> order;
    for (const auto& [time, chain] : by_time) order.push_back(chain);
    return order;
  }

  BlockPool pool{20};
  std::map<Chain, int64_t> last_held;

 private:
  static int32_t Last(const std::vector<int32_t>& held) { return held.empty() ? -1 : held.back(); }
  std::mt19937& random_;
  int64_t clock_ = 0;
};

TEST(BlockPool, ListsWhatNobodyHoldsAsItWasHeldLast) {
  std::mt19937 random(lockstep::testing::TestSeed());
  for (int turn = 0; turn < 100; ++turn) {
    Traffic traffic(&random);
    ASSERT_NO_FATAL_FAILURE(traffic.Run(1 + turn));
    const std::vector<Chain> want = traffic.Order();
    for (const int64_t most : {int64_t{0}, int64_t{3}, int64_t{100}}) {
      std::vector<int32_t> ids = {7};
      const std::vector<ChainedBlock> list = traffic.pool.Idle(most, &ids);
      const std::vector<Chain> chains = ChainsOf(list);
      ASSERT_EQ(chains.size(), std::min(want.size(), static_cast<size_t>(most)));
      ASSERT_TRUE(std::equal(chains.begin(), chains.end(), want.begin()));
      ASSERT_EQ(ids.size(), list.size());
      for (size_t i = 0; i < list.size(); ++i) {
        const int32_t before = list[i].before < 0 ? -1 : ids[list[i].before];
        ASSERT_EQ(traffic.pool.Find(before, list[i].tokens), ids[i]);
      }
    }
  }
}

TEST(BlockPool, ARestoredPoolFindsAndForgetsAsTheOldOneDid) {
  std::mt19937 random(lockstep::testing::TestSeed());
  for (int turn = 0; turn < 100; ++turn) {
    Traffic traffic(&random);
    ASSERT_NO_FATAL_FAILURE(traffic.Run(1 + turn));
    std::vector<int32_t> ids;
    const std::vector<ChainedBlock> list = traffic.pool.Idle(100, &ids);
    const std::vector<Chain> order = traffic.Order();
    for (const int64_t size : {1, 7, 20, 30}) {
      BlockPool pool(size);
      pool.Restore(list);
      ASSERT_EQ(pool.used(), 0);
      ASSERT_EQ(pool.available(), size) << "what nobody holds takes no room from anyone";
      auto kept = std::min(static_cast<int64_t>(order.size()), size);
      std::set<int32_t> taken;
      for (int64_t left = size; left >= 0; --left) {
        kept = std::min(kept, left);
        for (int64_t i = 0; i < static_cast<int64_t>(order.size()); ++i)
          ASSERT_EQ(Traffic::Finds(pool, order[i]), i < kept) << i << " of " << kept;
        if (left > 0) ASSERT_TRUE(taken.insert(TakeOne(pool)).second);
      }
    }
  }
}

TEST(BlockPool, AChainThatSomebodyHoldsIsNotListed) {
  BlockPool pool(4);
  const int32_t a = TakeOne(pool), b = TakeOne(pool), c = TakeOne(pool);
  pool.Publish(-1, Tokens(1), a);
  pool.Publish(a, Tokens(2), b);
  pool.Publish(-1, Tokens(3), c);
  pool.Drop(b);
  pool.Drop(c);
  std::vector<int32_t> ids;
  EXPECT_EQ(ChainsOf(pool.Idle(100, &ids)), (std::vector<Chain>{{3}}));
  EXPECT_EQ(ids, std::vector<int32_t>{c});
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
