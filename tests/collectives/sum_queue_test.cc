// Sums beside the computation: the bits of sums that are waited for at once, in the order in which
// they were posted, and an end when a peer is gone.
#include "collectives/sum_queue.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "tests/collectives/checks.h"
#include "tests/collectives/ranks.h"

namespace lockstep {
namespace {

class SumQueueOver : public ::testing::TestWithParam<std::string> {};

TEST_P(SumQueueOver, MakesTheSumsInOrderWhileOthersAreFilled) {
  constexpr uint32_t kSums = 40;
  const auto sums = [](Group& group) -> Status {
    std::vector<float> data[2];
    SumQueue queue(group);
    for (uint32_t seed = 0; seed <= kSums; ++seed) {
      if (seed < kSums) {
        data[seed % 2] = Contribution(group.rank(), MixBits(seed) % 9000, seed);
        queue.Post(data[seed % 2], WireFormat::kF32);
      }
      if (seed == 0) continue;
      LOCKSTEP_RETURN_IF_ERROR(queue.Wait());
      const std::vector<float>& got = data[(seed - 1) % 2];
      const auto want = ExpectedSum(group.size(), got.size(), seed - 1, WireFormat::kF32);
      if (!want.empty() && std::memcmp(got.data(), want.data(), want.size() * sizeof(float)) != 0)
        return InternalError("sum %d differs from the left fold", seed - 1);
    }
    // Nothing is under way: the group is the caller's again.
    return CheckAllReduce(group, 100, 99);
  };
  for (const Status& result : RunGroups(LocalRanks(3, GetParam()), sums)) {
    EXPECT_TRUE(result.ok()) << result;
  }
}

TEST_P(SumQueueOver, EndsWithTheErrorOfAPeerThatIsGone) {
  const auto sums = [](Group& group) -> Status {
    if (group.rank() == 1) return InternalError("rank 1 has something else to do");
    std::vector<float> first(5000, 1.0f), second(5000, 2.0f);
    SumQueue queue(group);
    queue.Post(first, WireFormat::kF32);
    queue.Post(second, WireFormat::kF32);
    const Status lost = queue.Wait();
    if (lost.ok()) return InternalError("there was a sum without rank 1");
    // And so does every later one, although two were under way.
    queue.Post(first, WireFormat::kF32);
    queue.Post(second, WireFormat::kF32);
    if (queue.Wait().ok()) return InternalError("there was a sum behind a lost rank");
    queue.Post(first, WireFormat::kF32);  // the queue ends with it under way
    return lost;
  };
  auto ranks = LocalRanks(3, GetParam());
  for (BootstrapOptions& options : ranks) options.exchange_timeout_ms = 2'000;
  const std::vector<Status> results = RunGroups(ranks, sums);
  for (const int survivor : {0, 2}) {
    EXPECT_EQ(KindOf(results[survivor]), ErrorKind::kPeerLost) << results[survivor];
  }
}

INSTANTIATE_TEST_SUITE_P(Transports, SumQueueOver, ::testing::Values("tcp", "shm", "sim"));

}  // namespace
}  // namespace lockstep
