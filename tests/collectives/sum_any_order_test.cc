#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <map>
#include <set>

#include "collectives/group.h"
#include "tests/collectives/checks.h"
#include "tests/collectives/ranks.h"

namespace lockstep {
namespace {

// On which machine each rank is, by its first rank.
using Machines = std::vector<int>;

// The tree along which values are added, written down as what is added to what: ranks to their
// machine's first; machines beyond a power of two to the first ones; then neighbours, neighbours'
// neighbours, and so on.
std::vector<float> AlongTheTree(const Machines& machines, size_t count, uint32_t seed) {
  std::map<int, std::vector<float>> by_machine;
  const auto add = [](std::vector<float>* sum, const std::vector<float>& values) {
    if (sum->empty()) {
      *sum = values;
      return;
    }
    for (size_t i = 0; i < values.size(); ++i) (*sum)[i] += values[i];
  };
  for (size_t rank = 0; rank < machines.size(); ++rank) {
    add(&by_machine[machines[rank]], Contribution(static_cast<int>(rank), count, seed));
  }
  std::vector<std::vector<float>> sums;
  for (auto& [machine, sum] : by_machine) sums.push_back(std::move(sum));
  for (size_t power = std::bit_floor(sums.size()); sums.size() > power; sums.pop_back()) {
    add(&sums[sums.size() - 1 - power], sums.back());
  }
  while (sums.size() > 1) {
    std::vector<std::vector<float>> next;
    for (size_t i = 0; i < sums.size(); i += 2) {
      next.push_back(sums[i]);
      add(&next.back(), sums[i + 1]);
    }
    sums = std::move(next);
  }
  return sums.front();
}

// Passes everything on, and keeps who talked with whom in messages.
class WatchedGroup final : public Group {
 public:
  explicit WatchedGroup(Group& inner) : Group(inner.rank(), inner.size()), inner_(inner) {}
  const GroupTraits& traits() const override { return inner_.traits(); }
  StatusOr<std::span<std::byte>> Begin(size_t bytes) override {
    LOCKSTEP_ASSIGN_OR_RETURN(slot_, inner_.Begin(bytes));
    return slot_;
  }
  Status ExpectPart(int peer, SlotPart part) override { return inner_.ExpectPart(peer, part); }
  Status PublishPart(int peer, SlotPart part) override {
    ++published;
    return inner_.PublishPart(peer, part);
  }
  StatusOr<std::span<const std::byte>> Wait(int peer) override { return inner_.Wait(peer); }
  Status End() override { return inner_.End(); }
  Status SendReceive(int to, std::span<const std::byte> data, int from, std::span<std::byte> buffer,
                     Patience patience) override {
    if (to >= 0) {
      partners.insert(to);
      sent_bytes += data.size();
      ++messages;
    }
    if (from >= 0) partners.insert(from);
    return inner_.SendReceive(to, data, from, buffer, patience);
  }
  void Abort(const Status& reason) override { inner_.Abort(reason); }

  std::set<int> partners;
  size_t published = 0, messages = 0, sent_bytes = 0;

 private:
  Group& inner_;
};

// What every rank does in one sum of `count` values on these machines.
std::vector<Status> RunAnyOrder(const Machines& machines, size_t count, size_t direct_bytes,
                                const std::function<void(const WatchedGroup&)>& look) {
  std::vector<BootstrapOptions> all = LocalRanks(static_cast<int>(machines.size()), "shm");
  return RunGroups(all, [&](Group& group) -> Status {
    WatchedGroup watched(group);
    watched.set_machines(machines);
    watched.set_sum_order(SumOrder::kAny);
    watched.set_sum_limits({.direct_bytes = direct_bytes});
    std::vector<float> data = Contribution(group.rank(), count, 77);
    LOCKSTEP_RETURN_IF_ERROR(AllReduceSum(watched, data));
    const std::vector<float> expected = AlongTheTree(machines, count, 77);
    if (std::memcmp(data.data(), expected.data(), count * sizeof(float)) != 0) {
      return InternalError("rank %d: the sum of %d values is not the one along the tree",
                           group.rank(), count);
    }
    look(watched);
    return OkStatus();
  });
}

void ExpectAllOk(const std::vector<Status>& results) {
  for (const Status& result : results) EXPECT_TRUE(result.ok()) << result;
}

const Machines kLayouts[] = {
    {0, 1},                    // two machines
    {0, 1, 2},                 // one beyond a power of two
    {0, 1, 2, 3},              //
    {0, 1, 2, 3, 4, 5, 6},     // three beyond
    {0, 0, 0, 0},              // one machine
    {0, 0, 2, 2},              // two of each
    {0, 1, 0, 1, 4},           // mixed up
    {0, 0, 0, 3, 4, 4, 6, 6},  // uneven
};

TEST(SumInAnyOrder, IsAddedAlongOneTreeWhateverItsLength) {
  for (const Machines& machines : kLayouts) {
    for (const size_t count : {size_t{1}, size_t{3}, size_t{5120}, size_t{40'003}}) {
      // By doubling, and by halving and doubling.
      for (const size_t direct_bytes : {SIZE_MAX, size_t{0}}) {
        SCOPED_TRACE(::testing::PrintToString(machines) + " " + std::to_string(count));
        ExpectAllOk(RunAnyOrder(machines, count, direct_bytes, [](const WatchedGroup&) {}));
      }
    }
  }
}

TEST(SumInAnyOrder, OnlyFirstRanksTalkWithOtherMachines) {
  for (const Machines& machines : kLayouts) {
    ExpectAllOk(RunAnyOrder(machines, 5120, SIZE_MAX, [&](const WatchedGroup& group) {
      const int mine = machines[static_cast<size_t>(group.rank())];
      for (const int partner : group.partners) {
        const int theirs = machines[static_cast<size_t>(partner)];
        EXPECT_TRUE(mine == theirs || (group.rank() == mine && partner == theirs))
            << "rank " << group.rank() << " with rank " << partner;
      }
      EXPECT_EQ(group.published, 0);
    }));
  }
}

TEST(SumInAnyOrder, ShortSumsTakeFewMessagesAndLongOnesFewBytes) {
  const Machines machines = {0, 1, 2, 3, 4, 5, 6, 7};
  ExpectAllOk(RunAnyOrder(machines, 5120, SIZE_MAX, [](const WatchedGroup& group) {
    EXPECT_EQ(group.messages, 3) << "log2(8)";
  }));
  const size_t count = 64'000;
  ExpectAllOk(RunAnyOrder(machines, count, 0, [&](const WatchedGroup& group) {
    EXPECT_EQ(group.sent_bytes, count * sizeof(float) * 2 * 7 / 8) << "2 (N - 1) / N of them";
  }));
}

}  // namespace
}  // namespace lockstep
