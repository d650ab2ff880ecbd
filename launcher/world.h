// Which rank this process is, of how many, and who starts the others. Found in this order: a parent
// that spawned this process, mpirun, the nodes of the cluster YAML, --ranks; without any of them a
// single rank. Sources that contradict each other are an error that shows both values.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "launcher/cluster_yaml.h"
#include "launcher/spawn.h"
#include "runtime/base/options.h"
#include "runtime/base/status.h"
#include "runtime/kernels/device_name.h"

namespace lockstep {

enum class WorldOrigin {
  kSingle,   // one rank, nobody to join
  kSpawner,  // rank 0, which starts the others on this machine
  kSpawned,  // started by rank 0
  kMpirun,   // started by mpirun
  kNodes,    // started by hand on its node
  kReexec,   // must run again under mpirun
};

struct World {
  WorldOrigin origin = WorldOrigin::kSingle;
  int rank = 0;
  int size = 1;
  std::string
      rendezvous;      // host:port of rank 0; empty under mpirun and where rank 0 picks a free port
  std::string secret;  // empty: none
  std::string interface;
  kernels::DeviceName device;  // what this rank computes on
  int64_t threads = 0;         // 0: this rank's share of the cores
  int ranks_on_this_host = 0;  // 0: not known before the ranks have joined
  // In a pipeline the ranks stand in as many stages, of equally many ranks each, in their order.
  int stages = 1;
  std::vector<double> stage_shares;  // one per stage; empty: as their memory
  std::vector<double> shares;        // one per rank that holds the same layers

  int stage_size() const { return size / stages; }
  int stage() const { return rank / stage_size(); }
  int rank_in_stage() const { return rank % stage_size(); }
};

// What a process finds around itself.
struct Surroundings {
  std::optional<SpawnTicket> ticket;
  bool under_mpirun = false;
  int mpi_rank = 0;
  int mpi_size = 1;
  std::vector<ClusterNode> nodes;
  // Whether a host name or address is this machine's.
  std::function<bool(const std::string& host)> is_own_host;
};

StatusOr<Surroundings> LookAround(const Options& options);
// `worker`: the command joins a cluster and is never alone.
StatusOr<World> DecideWorld(const Options& options, const Surroundings& around, bool worker);

// Whether this process is rank 0, for checks that are worth making before any rank is started;
// false also where that cannot be told, which OpenSession then reports.
bool WillBeRankZero(const Options& options);

// The command line that runs this process's own under mpirun: mpirun, its flags, then `arguments`.
std::vector<std::string> MpirunCommand(int ranks, bool as_root,
                                       const std::vector<std::string>& arguments);
// Replaces this process by MpirunCommand(); returns only if it cannot.
Status ReexecUnderMpirun(int ranks);

// True if `host` resolves to an address of one of this machine's interfaces.
bool IsOwnHost(const std::string& host);

// The contiguous part of `cpus` for one of `local_size` ranks on a node; all of them if there are
// more ranks than CPUs.
std::vector<int> ShareOfCpus(const std::vector<int>& cpus, int local_rank, int local_size);
// Lets this process run on its share of the node's cores (under mpirun, which binds each rank to
// one core, on more than before), and says how many compute threads to use.
StatusOr<int> TakeCores(const World& world, int local_rank, int local_size);

}  // namespace lockstep
