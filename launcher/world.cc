#include "launcher/world.h"

#include <algorithm>
#include <utility>

#include "collectives/bootstrap.h"
#include "runtime/base/os.h"
#include "runtime/weights/partition.h"
#include "transport/socket.h"

namespace lockstep {
namespace {

std::string JoinHosts(const std::vector<ClusterNode>& nodes, const char* separator) {
  std::string text;
  for (const ClusterNode& node : nodes) text += (text.empty() ? "" : separator) + node.host;
  return text;
}

bool AllLoopback(const std::vector<ClusterNode>& nodes) {
  return std::all_of(nodes.begin(), nodes.end(),
                     [](const ClusterNode& node) { return IsLoopback(node.host); });
}

class Decision {
 public:
  Decision(const Options& options, const Surroundings& around, bool worker)
      : options_(options), around_(around), worker_(worker) {}

  StatusOr<World> Make() {
    if (!options_.rendezvous.empty()) {
      LOCKSTEP_ASSIGN_OR_RETURN(rendezvous_, ParseAddress(options_.rendezvous, "--rendezvous"));
    }
    LOCKSTEP_RETURN_IF_ERROR(ChooseRank());
    LOCKSTEP_RETURN_IF_ERROR(ChooseStages());
    world_.interface = options_.interface;
    world_.threads = options_.threads;
    LOCKSTEP_ASSIGN_OR_RETURN(world_.device, kernels::DeviceOfRank(options_.device, world_.rank,
                                                                   world_.size, "--device"));
    const auto nodes = static_cast<int>(around_.nodes.size());
    if (world_.rank < nodes) {
      const ClusterNode& node = around_.nodes[world_.rank];
      if (!node.interface.empty()) world_.interface = node.interface;
      if (node.threads > 0) world_.threads = node.threads;
      if (node.device.has_value()) world_.device = *node.device;
    }
    LOCKSTEP_RETURN_IF_ERROR(FindSecret());
    return world_;
  }

 private:
  Status ChooseRank() {
    if (around_.ticket.has_value()) return AsSpawned();
    if (around_.under_mpirun) return AsMpiRank();
    if (!around_.nodes.empty()) return AsNode();
    if (worker_ && options_.rank < 0) {
      return UsageError(
          "a worker joins a cluster: give --config with a YAML that lists nodes, or start it by "
          "mpirun");
    }
    if (options_.rank >= 0) return AsManualRank();
    if (options_.ranks > 1) return AsSpawner(static_cast<int>(options_.ranks));
    return OkStatus();
  }

  void Become(WorldOrigin origin, int64_t rank, int64_t size) {
    world_.origin = origin;
    world_.rank = static_cast<int>(rank);
    world_.size = static_cast<int>(size);
  }

  Status AsSpawned() {
    const SpawnTicket& ticket = *around_.ticket;
    Become(WorldOrigin::kSpawned, ticket.rank, ticket.size);
    world_.rendezvous = ticket.rendezvous;
    world_.secret = ticket.secret;
    world_.ranks_on_this_host = ticket.size;
    return OkStatus();
  }

  Status AsMpiRank() {
    const int size = around_.mpi_size;
    if (options_.ranks != 0 && options_.ranks != size) {
      return UsageError("--ranks is %d but mpirun started %d; leave --ranks out under mpirun",
                        options_.ranks, size);
    }
    const auto nodes = static_cast<int>(around_.nodes.size());
    if (nodes != 0 && nodes != size) {
      return UsageError("%s lists %d nodes but mpirun started %d ranks", options_.config, nodes,
                        size);
    }
    if (options_.rank >= 0 && options_.rank != around_.mpi_rank) {
      return UsageError("--rank is %d but mpirun says %d; leave --rank out under mpirun",
                        options_.rank, around_.mpi_rank);
    }
    Become(WorldOrigin::kMpirun, around_.mpi_rank, size);
    world_.rendezvous = options_.rendezvous;
    return OkStatus();
  }

  Status AsNode() {
    const std::vector<ClusterNode>& nodes = around_.nodes;
    const auto size = static_cast<int>(nodes.size());
    if (options_.ranks != 0 && options_.ranks != size) {
      return UsageError("--ranks is %d but %s lists %d nodes; leave --ranks out", options_.ranks,
                        options_.config, size);
    }
    if (options_.rank >= size) {
      return UsageError("--rank is %d but %s lists %d nodes, rank 0 .. %d", options_.rank,
                        options_.config, size, size - 1);
    }
    const bool local = AllLoopback(nodes);
    if (options_.rank < 0 && local && worker_) {
      return UsageError("all nodes of %s are this machine; say which one this is with --rank",
                        options_.config);
    }
    if (options_.rank < 0 && local) return size > 1 ? AsSpawner(size) : OkStatus();
    if (options_.collective == "mpi") {
      return UsageError(
          "--collective mpi joins its ranks through mpirun: mpirun -n %d -H %s lockstep ...", size,
          JoinHosts(nodes, ","));
    }
    Become(size == 1 ? WorldOrigin::kSingle : WorldOrigin::kNodes, options_.rank, size);
    if (options_.rank < 0) LOCKSTEP_RETURN_IF_ERROR(FindOwnRank());
    const int port = nodes[0].port != 0 ? nodes[0].port : kDefaultRendezvousPort;
    world_.rendezvous =
        options_.rendezvous.empty() ? Endpoint{nodes[0].host, port}.Text() : options_.rendezvous;
    return OkStatus();
  }

  Status FindOwnRank() {
    int own = -1;
    for (size_t i = 0; i < around_.nodes.size(); ++i) {
      if (!around_.is_own_host(around_.nodes[i].host)) continue;
      if (own >= 0) {
        return UsageError("nodes %s and %s of %s are both this machine; say which one with --rank",
                          around_.nodes[own].name, around_.nodes[i].name, options_.config);
      }
      own = static_cast<int>(i);
    }
    if (own < 0) {
      return UsageError("none of the nodes of %s (%s) is this machine; say which one with --rank",
                        options_.config, JoinHosts(around_.nodes, ", "));
    }
    world_.rank = own;
    return OkStatus();
  }

  Status AsManualRank() {
    if (options_.ranks == 0 || options_.rendezvous.empty()) {
      return UsageError(
          "--rank %d needs the other ranks: --config with nodes, or --ranks and --rendezvous",
          options_.rank);
    }
    if (options_.rank >= options_.ranks) {
      return UsageError("--rank is %d but --ranks is %d, so ranks are 0 .. %d", options_.rank,
                        options_.ranks, options_.ranks - 1);
    }
    if (options_.collective == "mpi") {
      return UsageError("--collective mpi joins its ranks through mpirun; leave --rank out");
    }
    Become(options_.ranks == 1 ? WorldOrigin::kSingle : WorldOrigin::kNodes, options_.rank,
           options_.ranks);
    world_.rendezvous = options_.rendezvous;
    return OkStatus();
  }

  Status AsSpawner(int size) {
    if (options_.collective == "mpi") {
      Become(WorldOrigin::kReexec, 0, size);
      return OkStatus();
    }
    if (!rendezvous_.host.empty() && !IsLoopback(rendezvous_.host)) {
      return UsageError(
          "--rendezvous %s: ranks on this machine join through 127.0.0.1; leave it out",
          options_.rendezvous);
    }
    Become(WorldOrigin::kSpawner, 0, size);
    world_.rendezvous = options_.rendezvous;
    world_.ranks_on_this_host = size;
    return OkStatus();
  }

  Status ChooseStages() {
    const auto stages = static_cast<int>(options_.stages > 0 ? options_.stages : world_.size);
    const bool pipeline = options_.mode == "pipeline" && stages > 1;
    if (options_.mode != "pipeline" && options_.stages > 0)
      return UsageError("--stages are those of a pipeline; give --mode pipeline too");
    if (options_.mode != "pipeline" && options_.stage_link != Options().stage_link)
      return UsageError("--stage-link is that of a pipeline; give --mode pipeline too");
    if (!pipeline) {
      LOCKSTEP_ASSIGN_OR_RETURN(world_.shares, ValidateShares(options_.shares, world_.size));
      return OkStatus();
    }
    if (world_.size % stages != 0) {
      return UsageError(
          "%d ranks cannot stand in %d stages, which have equally many; use another --stages",
          world_.size, stages);
    }
    world_.stages = stages;
    if (!options_.shares.empty()) {
      if (std::ssize(options_.shares) != stages) {
        return UsageError("--shares has %d values, but in a pipeline it has one per stage: %d",
                          options_.shares.size(), stages);
      }
      LOCKSTEP_ASSIGN_OR_RETURN(world_.stage_shares, ValidateShares(options_.shares, stages));
    }
    LOCKSTEP_ASSIGN_OR_RETURN(world_.shares, ValidateShares({}, world_.stage_size()));
    return OkStatus();
  }

  Status FindSecret() {
    if (!world_.secret.empty() || world_.origin == WorldOrigin::kReexec) return OkStatus();
    if (!options_.secret_file.empty()) {
      LOCKSTEP_ASSIGN_OR_RETURN(world_.secret, ReadSecretFile(options_.secret_file));
      return OkStatus();
    }
    if (world_.origin == WorldOrigin::kSpawner) world_.secret = GenerateSecret();
    const bool beyond_loopback = world_.origin == WorldOrigin::kNodes &&
                                 !(AllLoopback(around_.nodes) && RendezvousIsLoopback());
    if (beyond_loopback) {
      return UsageError(
          "ranks on several machines prove a common secret: make one with `umask 077; openssl rand "
          "-hex 32 "
          "> FILE`, copy it to every node and give --secret-file FILE");
    }
    return OkStatus();
  }

  bool RendezvousIsLoopback() const {
    return rendezvous_.host.empty() || IsLoopback(rendezvous_.host);
  }

  const Options& options_;
  const Surroundings& around_;
  const bool worker_;
  ClusterNode rendezvous_;
  World world_;
};

}  // namespace

StatusOr<Surroundings> LookAround(const Options& options) {
  Surroundings around;
  LOCKSTEP_ASSIGN_OR_RETURN(around.ticket, TakeSpawnTicket());
  int local_rank = 0, local_size = 0;
  around.under_mpirun = DetectMpirun(&around.mpi_rank, &around.mpi_size, &local_rank, &local_size);
  if (!options.config.empty()) {
    LOCKSTEP_ASSIGN_OR_RETURN(const ClusterFile file, ReadClusterYaml(options.config));
    around.nodes = file.nodes;
  }
  around.is_own_host = IsOwnHost;
  return around;
}

StatusOr<World> DecideWorld(const Options& options, const Surroundings& around, bool worker) {
  return Decision(options, around, worker).Make();
}

bool WillBeRankZero(const Options& options) {
  const StatusOr<Surroundings> around = LookAround(options);
  if (!around.ok()) return false;
  const StatusOr<World> world = DecideWorld(options, *around, /*worker=*/false);
  return world.ok() && world->rank == 0;
}

std::vector<int> ShareOfCpus(const std::vector<int>& cpus, int local_rank, int local_size) {
  const size_t count = cpus.size(), ranks = local_size, rank = local_rank;
  if (ranks <= 1 || ranks > count) return cpus;
  return {cpus.begin() + count * rank / ranks, cpus.begin() + count * (rank + 1) / ranks};
}

StatusOr<int> TakeCores(const World& world, int local_rank, int local_size) {
  if (world.origin == WorldOrigin::kMpirun) {
    // First everything that the kernel grants (a container may have fewer CPUs than the node), then
    // the share of it.
    if (const Status widened = os::SetAffinity(os::OnlineCpus()); !widened.ok()) {
      return UsageError(
          "mpirun bound this rank to some cores and %s; give mpirun the flag --bind-to none",
          MessageOf(widened));
    }
  }
  const std::vector<int> granted = os::AllowedCpus();
  const std::vector<int> share = ShareOfCpus(granted, local_rank, local_size);
  if (share.size() < granted.size()) LOCKSTEP_RETURN_IF_ERROR(os::SetAffinity(share));
  if (world.threads > 0) return static_cast<int>(world.threads);
  return local_size > static_cast<int>(granted.size()) ? 1 : std::max<int>(1, share.size());
}

}  // namespace lockstep
