// Sums over ranks in whatever order takes the fewest and shortest messages, where
// `--sum-order any` allows it. What one rank adds, all others get as it is or add alike (a + b has
// the bits of b + a), so that all ranks end with the same bits.
//
//   1. each machine's ranks send their values to its first rank, its leader, which adds them;
//   2. the leaders add up among themselves: short sums by recursive doubling (each of log2(N)
//      rounds exchanges everything), long ones by recursive halving and doubling (twice as many
//      rounds, in which each leader moves less than two whole sums: Rabenseifner 2004);
//   3. leaders send the sum back to their machine's ranks.
//
// Partners come in the same order in both, so an element is added along the same tree however long
// the sum is: what a row becomes does not depend on the rows beside it.
#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "collectives/add_into.h"
#include "collectives/group.h"
#include "runtime/base/check.h"

namespace lockstep {
namespace {

std::span<const std::byte> Bytes(std::span<const float> values) { return std::as_bytes(values); }
std::span<std::byte> Bytes(std::span<float> values) { return std::as_writable_bytes(values); }

// A sum under way on one of the leaders, which are counted 0, 1, 2, ... by `leaders`.
struct LeaderSum {
  Group& group;
  std::span<const int> leaders;
  size_t me;
  std::span<float> data;
  std::span<float> received;  // as long as data

  Status Take(size_t from) {
    LOCKSTEP_RETURN_IF_ERROR(group.Receive(leaders[from], Bytes(received)));
    AddInto(data.data(), received.data(), data.size());
    return OkStatus();
  }

  // Everything with the partner of each round, 1, 2, 4, ... places away.
  Status Double(size_t count) {
    for (size_t distance = 1; distance < count; distance *= 2) {
      const int partner = leaders[me ^ distance];
      LOCKSTEP_RETURN_IF_ERROR(group.SendReceive(partner, Bytes(std::span<const float>(data)),
                                                 partner, Bytes(received), Patience::kStep));
      AddInto(data.data(), received.data(), data.size());
    }
    return OkStatus();
  }

  // Halving: of what this rank still adds it gives one half to the partner and takes the other,
  // until each has one part. Then the same way back with sums.
  Status HalveAndDouble(size_t count) {
    struct Round {
      size_t distance, first, middle, end;
    };
    Round rounds[32];
    size_t made = 0;
    size_t first = 0, end = data.size();
    for (size_t distance = 1; distance < count; distance *= 2) {
      const Round round = {distance, first, first + (end - first) / 2, end};
      rounds[made++] = round;
      const bool upper = (me & distance) != 0;
      (upper ? first : end) = round.middle;
      const std::span<float> keeps = data.subspan(first, end - first);
      const std::span<float> gives = Other(round, upper);
      const std::span<float> taken = received.first(keeps.size());
      LOCKSTEP_RETURN_IF_ERROR(Exchange(distance, gives, taken));
      AddInto(keeps.data(), taken.data(), keeps.size());
    }
    while (made > 0) {
      const Round& round = rounds[--made];
      const bool upper = (me & round.distance) != 0;
      LOCKSTEP_RETURN_IF_ERROR(
          Exchange(round.distance, data.subspan(first, end - first), Other(round, upper)));
      first = round.first;
      end = round.end;
    }
    return OkStatus();
  }

 private:
  template <typename Round>
  std::span<float> Other(const Round& round, bool upper) const {
    return upper ? data.subspan(round.first, round.middle - round.first)
                 : data.subspan(round.middle, round.end - round.middle);
  }
  Status Exchange(size_t distance, std::span<const float> sends, std::span<float> takes) {
    const int partner = leaders[me ^ distance];
    return group.SendReceive(partner, Bytes(sends), partner, Bytes(takes), Patience::kStep);
  }
};

Status SumOverLeaders(LeaderSum sum) {
  const size_t count = std::bit_floor(sum.leaders.size());
  const size_t direct_bytes = sum.group.sum_limits().direct_bytes;
  // Those beyond a power of two let another one add for them.
  if (sum.me >= count) {
    const int helper = sum.leaders[sum.me - count];
    LOCKSTEP_RETURN_IF_ERROR(sum.group.Send(helper, Bytes(std::span<const float>(sum.data))));
    return sum.group.Receive(helper, Bytes(sum.data));
  }
  const size_t helped = sum.me + count;
  if (helped < sum.leaders.size()) LOCKSTEP_RETURN_IF_ERROR(sum.Take(helped));
  LOCKSTEP_RETURN_IF_ERROR(sum.data.size_bytes() > direct_bytes ? sum.HalveAndDouble(count)
                                                                : sum.Double(count));
  if (helped >= sum.leaders.size()) return OkStatus();
  return sum.group.Send(sum.leaders[helped], Bytes(std::span<const float>(sum.data)));
}

}  // namespace

void Group::set_sum_order(SumOrder order) {
  sum_order_ = order;
  const bool adds_here = order == SumOrder::kAny && traits().any_order_is_fixed;
  if (adds_here) received_.resize(traits().slot_bytes / sizeof(float));
}

void Group::set_machines(std::span<const int> first_ranks) {
  leaders_.clear();
  machine_.clear();
  const int mine = first_ranks[static_cast<size_t>(rank_)];
  for (int rank = 0; rank < size_; ++rank) {
    const int leader = first_ranks[static_cast<size_t>(rank)];
    if (leader == rank) leaders_.push_back(rank);
    if (leader == mine) machine_.push_back(rank);
  }
}

Status Group::SumInAnyOrder(std::span<float> data) {
  const int leader = machine_.front();
  if (rank_ != leader) {
    LOCKSTEP_RETURN_IF_ERROR(Send(leader, Bytes(std::span<const float>(data))));
    return Receive(leader, Bytes(data));
  }
  LOCKSTEP_CHECK(received_.size() >= data.size());
  const std::span<float> received = std::span(received_).first(data.size());
  for (size_t i = 1; i < machine_.size(); ++i) {
    LOCKSTEP_RETURN_IF_ERROR(Receive(machine_[i], Bytes(received)));
    AddInto(data.data(), received.data(), data.size());
  }
  const auto me = std::find(leaders_.begin(), leaders_.end(), rank_) - leaders_.begin();
  LOCKSTEP_RETURN_IF_ERROR(
      SumOverLeaders({*this, leaders_, static_cast<size_t>(me), data, received}));
  for (size_t i = 1; i < machine_.size(); ++i) {
    LOCKSTEP_RETURN_IF_ERROR(Send(machine_[i], Bytes(std::span<const float>(data))));
  }
  return OkStatus();
}

}  // namespace lockstep
