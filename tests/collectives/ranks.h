// Ranks as threads of one process, for tests: each has its own membership and group, as processes
// would. Over the simulated network ("sim", "sim_in_place") there are groups only.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "collectives/bootstrap.h"
#include "collectives/group.h"
#include "runtime/base/check.h"
#include "tests/collectives/mesh_groups.h"
#include "tests/support/seed.h"

namespace lockstep {

inline BootstrapOptions LocalOptions(int rank, int size, const std::string& collective) {
  BootstrapOptions options;
  options.rank = rank;
  options.size = size;
  // "rdma_uc" is collective rdma in mode uc, "sim_in_place" the simulated network in that mode.
  const size_t end = std::min(collective.find('_'), collective.size());
  options.collective = collective.substr(0, end);
  if (end < collective.size()) options.rdma_mode = collective.substr(end + 1);
  options.secret = "a secret of this test";
  options.start_timeout_ms = 30'000;
  options.exchange_timeout_ms = 30'000;
  return options;
}

inline bool IsSimulated(const std::string& collective) { return collective.rfind("sim", 0) == 0; }

// Options of all ranks, with a free port of this machine.
inline std::vector<BootstrapOptions> LocalRanks(int size, const std::string& collective) {
  if (IsSimulated(collective)) {
    return std::vector<BootstrapOptions>(size, LocalOptions(0, size, collective));
  }
  std::string rendezvous;
  const StatusOr<int> listener = ListenForRanks("127.0.0.1", &rendezvous);
  LOCKSTEP_CHECK(listener.ok());
  std::vector<BootstrapOptions> all;
  for (int rank = 0; rank < size; ++rank) {
    all.push_back(LocalOptions(rank, size, collective));
    all.back().rendezvous = rendezvous;
  }
  all[0].rendezvous_fd = *listener;
  return all;
}

// Runs every rank in a thread; returns their statuses by rank.
inline std::vector<Status> RunAsThreads(const std::vector<BootstrapOptions>& all,
                                        const std::function<Status(Membership&)>& body) {
  std::vector<Status> results(all.size());
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < all.size(); ++rank) {
    threads.emplace_back([&, rank] {
      StatusOr<std::unique_ptr<Membership>> membership = Bootstrap(all[rank]);
      if (!membership.ok()) {
        results[rank] = membership.status();
        return;
      }
      results[rank] = body(**membership);
      if (results[rank].ok()) (*membership)->Leave();
    });
  }
  for (std::thread& thread : threads) thread.join();
  return results;
}

inline std::vector<Status> RunSimulated(const BootstrapOptions& all,
                                        const std::function<Status(Group&)>& body) {
  MeshesOptions mesh;
  mesh.transport = all.rdma_mode == "in_place" ? "sim_in_place" : all.collective;
  mesh.ranks = all.size;
  mesh.seed = testing::TestSeed();
  GroupOptions group;
  group.slot_bytes = all.slot_bytes;
  group.exchange_timeout_ms = all.exchange_timeout_ms;
  return RunMeshGroups(mesh, group, body);
}

// Same with one open group.
inline std::vector<Status> RunGroups(const std::vector<BootstrapOptions>& all,
                                     const std::function<Status(Group&)>& body) {
  if (IsSimulated(all[0].collective)) return RunSimulated(all[0], body);
  return RunAsThreads(all, [&](Membership& membership) -> Status {
    LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<Group> group, membership.OpenGroup());
    return body(*group);
  });
}

// Same with several groups of the same ranks at once, each in a thread of its own.
inline std::vector<Status> RunGroupsBesideEachOther(const std::vector<BootstrapOptions>& all,
                                                    int count,
                                                    const std::function<Status(Group&)>& body) {
  const auto together = [count](const std::function<Status(int)>& work) -> Status {
    std::vector<Status> results(count);
    std::vector<std::thread> threads;
    for (int i = 0; i < count; ++i) {
      threads.emplace_back([&, i] { results[i] = work(i); });
    }
    for (std::thread& thread : threads) thread.join();
    for (const Status& result : results) LOCKSTEP_RETURN_IF_ERROR(result);
    return OkStatus();
  };
  if (IsSimulated(all[0].collective)) {
    return {together([&](int) -> Status {
      for (const Status& result : RunSimulated(all[0], body)) LOCKSTEP_RETURN_IF_ERROR(result);
      return OkStatus();
    })};
  }
  return RunAsThreads(all, [&](Membership& membership) -> Status {
    std::vector<std::unique_ptr<Group>> groups;
    for (int i = 0; i < count; ++i) {
      LOCKSTEP_ASSIGN_OR_RETURN(std::unique_ptr<Group> group, membership.OpenGroup());
      groups.push_back(std::move(group));
    }
    return together([&](int i) { return body(*groups[i]); });
  });
}

}  // namespace lockstep
