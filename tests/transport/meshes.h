// The meshes of all ranks in one process, over any transport, for tests.
#pragma once

#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "runtime/base/check.h"
#include "transport/fabric.h"
#include "transport/fault.h"
#include "transport/sim.h"

namespace lockstep {

// Not a real keyed digest; the transport does not care.
inline Proof FakeSign(uint64_t key, std::span<const std::byte> data) {
  std::mt19937_64 random(key);
  for (const std::byte value : data) random.seed(random() + static_cast<uint64_t>(value));
  Proof proof;
  for (std::byte& value : proof) value = static_cast<std::byte>(random());
  return proof;
}

inline FabricOptions FabricOf(const std::string& transport, int rank, int size, uint64_t key) {
  FabricOptions options;
  options.rank = rank;
  options.size = size;
  options.transport = transport;
  options.window_bytes = 4096;
  options.hosts = {"127.0.0.1"};
  options.sign = [key](std::span<const std::byte> data) { return FakeSign(key, data); };
  options.nonce = [] {
    std::random_device random;
    std::array<std::byte, 16> nonce;
    for (std::byte& value : nonce) value = static_cast<std::byte>(random());
    return nonce;
  };
  return options;
}

struct MeshesOptions {
  std::string transport = "tcp";  // tcp, shm, sim, sim_in_place
  int ranks = 2;
  size_t window_bytes = 0;
  uint64_t seed = 1;  // of sim
  // What is wrong with the link of a rank to a peer; empty: nothing.
  std::function<FaultOptions(int rank, int peer)> faults;
};

// By rank. Bugs of the test stop the program.
inline std::vector<Mesh> OpenMeshes(const MeshesOptions& options) {
  std::vector<Mesh> meshes(options.ranks);
  if (options.transport.substr(0, 3) == "sim") {
    SimOptions sim;
    sim.ranks = options.ranks;
    sim.window_bytes = options.window_bytes;
    sim.seed = options.seed;
    sim.in_place = options.transport == "sim_in_place";
    StatusOr<SimNetwork> network = MakeSimNetwork(sim);
    LOCKSTEP_CHECK(network.ok());
    meshes = std::move(network->meshes);
  } else {
    std::vector<std::unique_ptr<Fabric>> fabrics;
    std::vector<std::string> addresses;
    for (int rank = 0; rank < options.ranks; ++rank) {
      FabricOptions fabric = FabricOf(options.transport, rank, options.ranks, 42);
      fabric.window_bytes = options.window_bytes;
      StatusOr<std::unique_ptr<Fabric>> opened = OpenFabric(std::move(fabric));
      LOCKSTEP_CHECK(opened.ok());
      addresses.push_back((*opened)->address());
      fabrics.push_back(std::move(*opened));
    }
    std::vector<std::thread> threads;
    for (int rank = 0; rank < options.ranks; ++rank) {
      threads.emplace_back([&, rank] {
        StatusOr<Mesh> mesh = fabrics[rank]->Connect(addresses, Deadline::After(60'000));
        LOCKSTEP_CHECK(mesh.ok());
        meshes[rank] = std::move(*mesh);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  for (int rank = 0; options.faults && rank < options.ranks; ++rank) {
    for (int peer = 0; peer < options.ranks; ++peer) {
      std::unique_ptr<Link>& link = meshes[rank].links[peer];
      if (link != nullptr) link = MakeFaultyLink(std::move(link), options.faults(rank, peer));
    }
  }
  return meshes;
}

}  // namespace lockstep
