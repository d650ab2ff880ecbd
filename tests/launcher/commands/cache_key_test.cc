// Everything that decides the bits of a page is in the key, and what decides none is not.
#include "launcher/commands/cache_key.h"

#include <gtest/gtest.h>

#include <functional>
#include <set>
#include <string>

namespace lockstep {
namespace {

CacheKeyFacts Facts() {
  return {.build = "0.1.0+0123 (gcc 12)",
          .c_library = "glibc 2.36, 00ff",
          .model_digest = 7,
          .kernels = "avx2",
          .cache_type = "f32",
          .shares = {1, 1},
          .wire = "f32",
          .sum_order = "rank",
          .draft = false,
          .hosts = {"a", "b"}};
}

TEST(CacheKey, EveryFactChangesItAlone) {
  using Change = std::function<void(CacheKeyFacts*)>;
  const Change changes[] = {[](CacheKeyFacts*) {},
                            [](CacheKeyFacts* f) { f->build = "0.1.0+0123 (gcc 13)"; },
                            [](CacheKeyFacts* f) { f->c_library = "glibc 2.36, 00fe"; },
                            [](CacheKeyFacts* f) { f->model_digest = 8; },
                            [](CacheKeyFacts* f) { f->kernels = "avx512"; },
                            [](CacheKeyFacts* f) { f->cache_type = "bf16"; },
                            [](CacheKeyFacts* f) {
                              f->shares = {1, 2};
                            },
                            [](CacheKeyFacts* f) {
                              f->shares = {1, 1, 1};
                            },
                            [](CacheKeyFacts* f) { f->wire = "bf16"; },
                            [](CacheKeyFacts* f) { f->sum_order = "any"; },
                            [](CacheKeyFacts* f) { f->draft = true; }};
  std::set<std::string> keys;
  for (const Change& change : changes) {
    CacheKeyFacts facts = Facts();
    change(&facts);
    const std::string key = CacheKeyOf(facts);
    EXPECT_TRUE(keys.insert(key).second) << key;
    EXPECT_EQ(key.back(), '\n');
  }
}

TEST(CacheKey, WhichRanksShareAMachineMattersForSumsInAnyOrderOnly) {
  const auto key = [](const char* order, std::vector<std::string> hosts) {
    CacheKeyFacts facts = Facts();
    facts.shares = {1, 1, 1};
    facts.sum_order = order;
    facts.hosts = std::move(hosts);
    return CacheKeyOf(facts);
  };
  EXPECT_EQ(key("rank", {"a", "a", "b"}), key("rank", {"a", "b", "b"}));
  EXPECT_NE(key("any", {"a", "a", "b"}), key("any", {"a", "b", "b"}));
  EXPECT_EQ(key("any", {"a", "a", "b"}), key("any", {"c", "c", "a"})) << "not what they are called";
}

TEST(CacheKey, KnowsTheCLibrary) {
  EXPECT_EQ(CLibraryDescription(), CLibraryDescription());
  EXPECT_GE(CLibraryDescription().size(), 16u);
}

}  // namespace
}  // namespace lockstep
