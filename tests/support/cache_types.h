// What every model keeps with every number format of the KV cache.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/compare.h"
#include "tests/support/golden.h"
#include "tests/support/ranks.h"
#include "tests/support/sequences.h"

namespace lockstep::testing {

// Two ranks of the golden model `name`: the last `keep` rows of its prompt (-1: all) near the
// reference, and no bit that depends on steps or threads. Allowed is about three times what was
// seen (docs/numerics.md); random weights at tiny widths feel rounding more than a real model does.
inline void CheckCacheTypes(const std::string& name, int64_t keep) {
  const Golden golden(SourcePath("tests/goldens/goldens/" + name + ".safetensors"));
  for (const auto& [type, tolerance] : {std::pair{kernels::CacheType::kBF16, 0.02},
                                        {kernels::CacheType::kF16, 0.002},
                                        {kernels::CacheType::kQ8, 0.05}}) {
    const auto run = [&](const char* ids, int step, int threads) {
      std::vector<Collected> results(2);
      RunRanks(2, "tcp", [&](Membership&, Group& group) {
        TestModelOptions options;
        options.directory = SourcePath("tests/goldens/models/" + name);
        options.threads = threads;
        options.limits.cache_type = type;
        const TestModel model = OpenModel(options, group);
        ASSERT_NE(model.model, nullptr);
        results[static_cast<size_t>(group.rank())] =
            RunTogether(*model.model, {{golden.Ids(ids), 0}}, step);
      });
      return results;
    };
    const auto whole = run("long.input_ids", 0, 1), parted = run("long.input_ids", 150, 3);
    EXPECT_EQ(whole[0].logits, parted[0].logits) << NameOf(type);
    EXPECT_EQ(whole[1].logits, parted[1].logits) << NameOf(type);
    const double error = RelativeError(LastLogits(run("main.input_ids", 0, 1), 0, keep),
                                       golden.Floats("main.logits"));
    EXPECT_LE(error, tolerance) << NameOf(type);
    EXPECT_GE(error, 1e-5) << NameOf(type) << " rounds nothing";
    ::testing::Test::RecordProperty(std::string(NameOf(type)), std::to_string(error));
  }
}

}  // namespace lockstep::testing
