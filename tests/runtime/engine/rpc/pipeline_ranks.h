// Ranks as threads that hold a golden model in stages, or all of it together, behind one executor.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "runtime/engine/engine.h"
#include "runtime/engine/pipeline_executor.h"
#include "runtime/engine/rpc/grpc_stage_link.h"
#include "runtime/engine/tensor_parallel.h"
#include "runtime/model/shape.h"
#include "tests/support/golden.h"
#include "tests/support/ranks.h"

namespace lockstep::testing {

struct Way {
  int ranks = 1;
  int stages = 1;  // 1: tensor mode
  std::string link = "grpc";
  std::vector<double> shares;  // of the stages; empty: even
  bool verify = false;         // exchanges between stages
  int64_t kv_blocks = 32;
  std::shared_ptr<const AddedLatency> added_latency = nullptr;
};
inline void PrintTo(const Way& way, std::ostream* out) {
  *out << way.ranks << " ranks, " << way.stages << " stages, " << way.link;
}

inline constexpr int64_t kChunkRows = 8;
inline constexpr int64_t kPlanRows = 64;
inline const ModelLimits kStageLimits = {
    .max_rows = kChunkRows + 4, .max_outputs = 64, .max_model_len = 128, .kv_blocks = 32};

// Collective.
inline StatusOr<std::unique_ptr<StageLink>> OpenLink(const Way& way, Membership& membership,
                                                     Group& group) {
  StagePeers peers = PeersOf(group.rank(), way.ranks, way.stages);
  for (const RankInfo& rank : membership.ranks()) peers.names.push_back(rank.Name());
  peers.verify = way.verify;
  peers.added_latency = way.added_latency;
  peers.health = [&membership] { return membership.Health(); };
  if (way.link != "grpc") {
    LOCKSTEP_ASSIGN_OR_RETURN(Mesh rows, membership.OpenMesh(way.link, 0));
    LOCKSTEP_ASSIGN_OR_RETURN(Mesh outcomes, membership.OpenMesh(way.link, 0));
    return MakeTransportStageLink(std::move(peers), FindTransport(way.link), std::move(rows),
                                  std::move(outcomes), membership.crowded());
  }
  GrpcStageOptions options;
  options.hosts = {"127.0.0.1"};
  options.sign = [&membership](std::span<const std::byte> data) { return membership.Sign(data); };
  const int next = peers.to;
  options.peers = std::move(peers);
  LOCKSTEP_ASSIGN_OR_RETURN(std::unique_ptr<GrpcStageLink> link,
                            ListenForStage(std::move(options)));
  std::array<char, 64> mine{};
  std::strncpy(mine.data(), link->address().c_str(), mine.size() - 1);
  std::vector<std::array<char, 64>> all(static_cast<size_t>(way.ranks));
  LOCKSTEP_RETURN_IF_ERROR(
      AllGather(group, std::as_bytes(std::span(mine)), std::as_writable_bytes(std::span(all))));
  LOCKSTEP_RETURN_IF_ERROR(link->Connect(next < 0 ? "" : all[static_cast<size_t>(next)].data()));
  return StatusOr<std::unique_ptr<StageLink>>(std::move(link));
}

// Runs body(executor, config) on rank 0 over all ranks, whose digests over all steps it returns.
inline std::vector<uint64_t> RunWay(
    const std::string& model_name, const Way& way,
    const std::function<void(GroupExecutor&, const ModelConfig&)>& body) {
  std::vector<uint64_t> digests;
  RunRanks(way.ranks, "tcp", [&](Membership& membership, Group& group) {
    const int width = way.ranks / way.stages;
    const int stage = group.rank() / width;
    const bool pipeline = way.stages > 1;
    std::unique_ptr<Group> part;
    if (pipeline) part = membership.OpenPartGroup(stage * width, width, 1 << 16).value();
    Group& stage_group = pipeline ? *part : group;
    ThreadPool pool(1);
    const auto backend = kernels::MakeBackend("cpu", kernels::Precision::kExact).value();
    LoadOptions load;
    load.directory = SourcePath("tests/goldens/models/" + model_name);
    load.shares.assign(static_cast<size_t>(width), 1);
    load.stage = {stage, way.shares.empty() ? std::vector<double>(way.stages, 1) : way.shares};
    load.limits = kStageLimits;
    load.limits.kv_blocks = way.kv_blocks;
    if (!pipeline) load.limits.max_rows = kPlanRows;
    const auto model = LoadModel(load, stage_group, *backend, pool).value();
    const Range rows = CutModel(model->config(), load.shares).vocab[stage_group.rank()];
    std::vector<std::string> names;
    for (const RankInfo& rank : membership.ranks()) names.push_back(rank.Name());
    std::unique_ptr<GroupExecutor> executor;
    if (pipeline) {
      auto link = OpenLink(way, membership, group);
      ASSERT_TRUE(link.ok()) << link.status();
      PipelineSetup setup;
      setup.pipeline = {.stages = way.stages, .stage = stage, .chunk_rows = kChunkRows};
      setup.plan_rows = kPlanRows;
      if (stage + 1 == way.stages) setup.slice = {rows.begin, rows.end};
      setup.names = names;
      auto made =
          PipelineExecutor::Create(*model, group, stage_group, std::move(*link), std::move(setup));
      ASSERT_TRUE(made.ok()) << made.status();
      executor = std::move(*made);
    } else {
      executor =
          TensorParallelExecutor::Create(*model, group, {rows.begin, rows.end}, names).value();
    }
    if (group.rank() != 0) {
      const Status end = executor->RunWorker();
      EXPECT_TRUE(end.ok()) << end;
      return;
    }
    body(*executor, model->config());
    const auto all = executor->Stop(1'000'000, ErrorKind{0});
    EXPECT_TRUE(all.ok()) << all.status();
    if (all.ok()) digests = *all;
  });
  return digests;
}

}  // namespace lockstep::testing
