#include "launcher/commands/pipelines.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <utility>

#include "launcher/commands/bench.h"
#include "launcher/stages.h"
#include "runtime/engine/rpc/grpc_stage_link.h"
#include "transport/fabric.h"

namespace lockstep {
namespace {

// A step of k chunks over n stages takes as long as k + n - 1 of them on one: with four for every
// stage a fifth of the time is lost at the most.
constexpr int64_t kChunksPerStage = 4;

StatusOr<std::unique_ptr<StageLink>> OpenGrpc(Session& session, StagePeers peers) {
  Membership& membership = session.membership();
  GrpcStageOptions options;
  LOCKSTEP_ASSIGN_OR_RETURN(options.hosts, membership.DataHosts("tcp"));
  options.sign = [&membership](std::span<const std::byte> data) { return membership.Sign(data); };
  options.start_timeout_ms = session.options().start_timeout_ms;
  const int next = peers.to;
  options.peers = std::move(peers);
  LOCKSTEP_ASSIGN_OR_RETURN(std::unique_ptr<GrpcStageLink> link,
                            ListenForStage(std::move(options)));
  LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<std::string> addresses,
                            GatherWords(session.group(), link->address()));
  LOCKSTEP_RETURN_IF_ERROR(link->Connect(next < 0 ? "" : addresses[static_cast<size_t>(next)]));
  return StatusOr<std::unique_ptr<StageLink>>(std::move(link));
}

StatusOr<std::unique_ptr<StageLink>> Open(Session& session) {
  StagePeers peers = PeersOf(session.rank(), session.size(), session.stages());
  peers.names = RankNames(session);
  Membership& membership = session.membership();
  peers.verify = session.options().verify_exchanges;
  peers.health = [&membership] { return membership.Health(); };
  peers.added_latency = membership.added_latency();
  const std::string& carrier = session.options().stage_link;
  LOCKSTEP_RETURN_IF_ERROR(
      CheckStageLink(carrier, membership.local_size() == std::ssize(membership.ranks())));
  if (carrier == "grpc") return OpenGrpc(session, std::move(peers));
  LOCKSTEP_ASSIGN_OR_RETURN(Mesh rows, membership.OpenMesh(carrier, 0));
  LOCKSTEP_ASSIGN_OR_RETURN(Mesh outcomes, membership.OpenMesh(carrier, 0));
  return MakeTransportStageLink(std::move(peers), FindTransport(carrier), std::move(rows),
                                std::move(outcomes), membership.crowded());
}

}  // namespace

std::vector<std::string> RankNames(Session& session) {
  std::vector<std::string> names;
  for (const RankInfo& rank : session.membership().ranks()) names.push_back(rank.Name());
  return names;
}

PipelineOptions PipelineOptionsOf(Session& session) {
  PipelineOptions options;
  options.stages = session.stages();
  options.stage = session.stage();
  options.chunk_rows = session.options().prefill_chunk;
  // Ranks that share a stage wait for each other in its exchanges: whoever waits for rows says so
  // before they can hold it for the one that is stuck.
  const bool alone = session.stages() == session.size();
  options.wait_ms = std::max<int64_t>(session.options().exchange_timeout_ms / (alone ? 1 : 2), 1);
  options.meter = &session.membership().meter();
  return options;
}

StatusOr<std::unique_ptr<StageLink>> OpenStageLink(Session& session) {
  StatusOr<std::unique_ptr<StageLink>> link = Open(session);
  if (!link.ok()) session.membership().Abort(link.status());
  return link;
}

int64_t ChunksOfStep(const Session& session) {
  return session.stages() == 1 ? 1 : kChunksPerStage * session.stages();
}

int64_t PlanRowsOf(Session& session) {
  const ModelLimits& limits = session.model().limits();
  return limits.max_rows + (ChunksOfStep(session) - 1) * session.options().prefill_chunk;
}

}  // namespace lockstep
