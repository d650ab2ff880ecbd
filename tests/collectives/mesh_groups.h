// Groups of link meshes in one process, without a bootstrap and without a control channel: each
// rank finds out by itself what happened to the others.
#pragma once

#include <string>
#include <thread>
#include <vector>

#include "collectives/backends.h"
#include "collectives/bootstrap.h"
#include "tests/transport/meshes.h"

namespace lockstep {

// Runs every rank in a thread; returns their statuses by rank. `mesh.window_bytes` follows from the
// slots. A rank that fails goes away, as its process would.
inline std::vector<Status> RunMeshGroups(MeshesOptions mesh, const GroupOptions& common,
                                         const std::function<Status(Group&)>& body) {
  mesh.window_bytes = LinkWindowBytes(common.slot_bytes);
  std::vector<Mesh> meshes = OpenMeshes(mesh);
  std::vector<Status> results(mesh.ranks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < mesh.ranks; ++rank) {
    threads.emplace_back([&, rank] {
      GroupOptions options = common;
      options.rank = rank;
      options.size = mesh.ranks;
      options.names.clear();
      for (int other = 0; other < mesh.ranks; ++other)
        options.names.push_back(RankInfo{other, 4700 + other, "test", ""}.Name());
      options.lifeline = std::make_shared<Lifeline>();
      const char* name = meshes[rank].links[rank == 0 ? 1 : 0]->traits().name;
      StatusOr<std::unique_ptr<Group>> group =
          MakeLinkGroup(std::move(options), name, std::move(meshes[rank]));
      results[rank] = group.ok() ? body(**group) : group.status();
    });
  }
  for (std::thread& thread : threads) thread.join();
  return results;
}

}  // namespace lockstep
