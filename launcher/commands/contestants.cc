#include "launcher/commands/contestants.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "collectives/open_mpi.h"
#include "launcher/commands/ping_pong.h"
#include "runtime/base/clock.h"
#include "transport/fabric.h"

namespace lockstep {
namespace {

// Addends are below 2^8 in magnitude, with 24 bits each.
constexpr float kSlackInAnyOrder = 0x1p-14f;
constexpr SumAlgorithm kAlgorithms[] = {SumAlgorithm::kGather, SumAlgorithm::kDirect,
                                        SumAlgorithm::kTwoStep};

std::string TypeName(WireFormat wire) {
  return wire == WireFormat::kF32 ? "float32" : NameOf(wire);
}

// What a group of these settings does with float32 values of `bytes` in its slot.
SumPlan PlanOf(const Group& group, const SumLimits& limits, size_t bytes, WireFormat wire) {
  return ChooseSum(group.traits(), group.size(), limits, bytes / sizeof(float), wire);
}

// The limits with which all sums are made that way, as far as they can be.
SumLimits Forcing(SumAlgorithm algorithm) {
  return {.gathered_bytes = algorithm == SumAlgorithm::kGather ? SIZE_MAX : 0,
          .direct_bytes = algorithm == SumAlgorithm::kDirect ? SIZE_MAX : 0};
}

// Two ranks would only wait twice.
bool IsOffered(SumAlgorithm algorithm, int ranks) {
  return algorithm != SumAlgorithm::kGather || ranks > 2;
}

// Whether a group with these limits makes a sum that way; of ordinary memory, its exchanges.
struct Makes {
  SumOrder order;  // of the cluster's sums
  SumAlgorithm algorithm;
  std::shared_ptr<Group> group;
  SumLimits limits;
  WireFormat wire;
  bool in_slot;

  bool operator()(size_t bytes) const {
    if (order == SumOrder::kAny && wire == WireFormat::kF32) return false;
    const size_t longest = PlanOf(*group, limits, bytes, wire).longest_bytes;
    const size_t exchange = in_slot ? bytes : std::min(bytes, longest);
    return PlanOf(*group, limits, exchange, wire).algorithm == algorithm;
  }
};

// To sums in ordinary memory, from values there or, as a layer does it, whose products write them
// there, in the slot.
Contestant SumOf(const std::shared_ptr<Group>& group, const std::string& transport, WireFormat wire,
                 SumAlgorithm algorithm, bool in_slot, SumOrder order) {
  const auto run = [=](size_t repetition, const Values& values,
                       std::span<float> data) -> StatusOr<int64_t> {
    group->set_sum_limits(Forcing(algorithm));
    std::span<float> input = data;
    if (in_slot) {
      LOCKSTEP_ASSIGN_OR_RETURN(const std::span<std::byte> slot, group->Begin(data.size_bytes()));
      input = {reinterpret_cast<float*>(slot.data()), data.size()};
    }
    values.Fill(repetition, input);
    const int64_t start_ns = NowNs();
    LOCKSTEP_RETURN_IF_ERROR(in_slot ? SumSlots(*group, data, wire)
                                     : AllReduceSum(*group, data, wire));
    const int64_t took_ns = NowNs() - start_ns;
    LOCKSTEP_RETURN_IF_ERROR(values.Check(repetition, data));
    return took_ns;
  };
  return {transport,
          in_slot ? InSlot(algorithm) : NameOf(algorithm),
          run,
          TypeName(wire),
          Makes{SumOrder::kRank, algorithm, group, Forcing(algorithm), wire, in_slot},
          Makes{order, algorithm, group, group->sum_limits(), wire, in_slot}};
}

// Along a tree, as `--sum-order any` allows it.
Contestant SumInAnyOrderOf(const std::shared_ptr<Group>& group, const std::string& transport,
                           bool chosen) {
  // The contestants before this one leave theirs behind.
  const auto run = [=, limits = group->sum_limits()](size_t repetition, const Values& values,
                                                     std::span<float> data) -> StatusOr<int64_t> {
    group->set_sum_limits(limits);
    group->set_sum_order(SumOrder::kAny);
    values.Fill(repetition, data);
    const int64_t start_ns = NowNs();
    LOCKSTEP_RETURN_IF_ERROR(group->SumInAnyOrder(data));
    const int64_t took_ns = NowNs() - start_ns;
    group->set_sum_order(SumOrder::kRank);
    LOCKSTEP_RETURN_IF_ERROR(values.CheckInAnyOrder(repetition, data, kSlackInAnyOrder));
    return took_ns;
  };
  return {.transport = transport, .algorithm = "any order", .run = run, .chosen = [chosen](size_t) {
            return chosen;
          }};
}

Contestant OpenMpi() {
  const auto run = [](size_t repetition, const Values& values,
                      std::span<float> data) -> StatusOr<int64_t> {
    values.Fill(repetition, data);
    const int64_t start_ns = NowNs();
    LOCKSTEP_RETURN_IF_ERROR(MpiAllReduceSum(data));
    const int64_t took_ns = NowNs() - start_ns;
    LOCKSTEP_RETURN_IF_ERROR(values.CheckInAnyOrder(repetition, data, kSlackInAnyOrder));
    return took_ns;
  };
  return {.transport = "mpi", .algorithm = "MPI_Allreduce", .run = run, .chosen = [](size_t) {
            return false;
          }};
}

// Messages between ranks 0 and 1 on bare links, as long as a rank's values on the wire; the others
// look on.
StatusOr<Contestant> BarePingPong(Session& session, const std::string& transport, WireFormat wire) {
  LOCKSTEP_ASSIGN_OR_RETURN(Mesh opened, session.membership().OpenMesh(transport, 0));
  const auto mesh = std::make_shared<Mesh>(std::move(opened));
  if (session.rank() > 1) {
    return Contestant{transport, "ping-pong",
                      [mesh](size_t, const Values&, std::span<float>) { return int64_t{0}; }};
  }
  const int peer = 1 - session.rank();
  const auto game = std::make_shared<PingPong>(*mesh->links[peer], session, peer);
  const auto run = [mesh, game, wire, asks = session.rank() == 0](
                       size_t repetition, const Values& values,
                       std::span<float> data) -> StatusOr<int64_t> {
    const size_t bytes = WireBytes(wire, data.size());
    if (!asks) {
      LOCKSTEP_RETURN_IF_ERROR(game->Answer(bytes));
      return int64_t{0};
    }
    values.Fill(repetition, data);
    return game->Ask(std::as_bytes(data).first(bytes));
  };
  return Contestant{transport, "ping-pong", run, TypeName(wire)};
}

}  // namespace

std::string InSlot(SumAlgorithm algorithm) { return NameOf(algorithm) + std::string(", in slot"); }

StatusOr<std::vector<Contestant>> MakeContestants(Session& session,
                                                  const std::vector<std::string>& transports,
                                                  size_t longest_bytes, WireFormat wire) {
  const size_t slot_bytes = (std::max(longest_bytes, size_t{1} << 20) + 63) / 64 * 64;
  std::vector<Contestant> all;
  for (const std::string& transport : transports) {
    if (FindTransport(transport) != nullptr) {
      LOCKSTEP_ASSIGN_OR_RETURN(Contestant bare, BarePingPong(session, transport, wire));
      all.push_back(std::move(bare));
    }
    LOCKSTEP_ASSIGN_OR_RETURN(const std::shared_ptr<Group> group,
                              session.membership().OpenGroup(transport, slot_bytes));
    group->set_sum_limits(session.group().sum_limits());
    const SumOrder order = session.group().sum_order();
    for (const SumAlgorithm algorithm : kAlgorithms) {
      if (!IsOffered(algorithm, session.size())) continue;
      for (const bool in_slot : {false, true})
        all.push_back(SumOf(group, transport, wire, algorithm, in_slot, order));
    }
    if (wire == WireFormat::kF32) {
      all.push_back(SumInAnyOrderOf(group, transport, order == SumOrder::kAny));
    }
    if (transport == "mpi") all.push_back(OpenMpi());
  }
  return all;
}

}  // namespace lockstep
