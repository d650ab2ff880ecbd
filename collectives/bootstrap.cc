#include "collectives/bootstrap.h"

#include <fcntl.h>

#include <charconv>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "collectives/membership.h"
#include "collectives/rendezvous.h"
#include "runtime/base/os.h"
#include "transport/fabric.h"
#include "transport/socket.h"

namespace lockstep {
namespace {

// A variable of the environment as a number; -1 if it is absent or is none.
int NumberFromEnvironment(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr) return -1;
  int value = -1;
  const char* end = text + std::strlen(text);
  const auto [rest, error] = std::from_chars(text, end, value);
  return error == std::errc() && rest == end ? value : -1;
}

Status CheckOptions(const BootstrapOptions& options) {
  if (options.size < 1 || options.size > 1024) {
    return UsageError("%d ranks: the number of ranks must be from 1 to 1024", options.size);
  }
  if (options.rank < 0 || options.rank >= options.size) {
    return UsageError("rank %d does not exist among %d ranks: they are 0 to %d", options.rank,
                      options.size, options.size - 1);
  }
  const std::string& collective = options.collective;
  const bool has_links = FindTransport(collective) != nullptr;
  if (!has_links && collective != "mpi" && collective != "nccl") {
    return UsageError("there is no collective '%s': use tcp, shm, rdma, mpi or nccl", collective);
  }
  if (options.slot_bytes < 64 || options.slot_bytes % 64 != 0 ||
      options.slot_bytes > kLargestSlotBytes) {
    return UsageError("exchange slots of %d bytes: a multiple of 64 up to 1 GiB is needed",
                      options.slot_bytes);
  }
  if (!options.interface.empty())
    LOCKSTEP_RETURN_IF_ERROR(AddressOfInterface(options.interface).status());
  if (options.verify_exchanges && !has_links) {
    return UsageError(
        "--verify-exchanges works over tcp, shm and rdma, not over the messages of %s: leave it "
        "out, or choose another --collective",
        collective == "mpi" ? "Open MPI" : "NCCL");
  }
  int rank = 0, size = 0, local_rank = 0, local_size = 0;
  if (options.collective == "mpi" && options.size > 1 &&
      !DetectMpirun(&rank, &size, &local_rank, &local_size)) {
    return UsageError("--collective mpi needs mpirun: start with mpirun -n %d, or use tcp or shm",
                      options.size);
  }
  return OkStatus();
}

RendezvousOptions MakeRendezvousOptions(const BootstrapOptions& options, std::string secret) {
  RendezvousOptions rendezvous;
  rendezvous.secret = std::move(secret);
  rendezvous.start_timeout_ms = options.start_timeout_ms;
  rendezvous.self.rank = static_cast<uint32_t>(options.rank);
  rendezvous.self.size = static_cast<uint32_t>(options.size);
  rendezvous.self.pid = static_cast<uint32_t>(os::ProcessId());
  rendezvous.self.host = os::HostName();
  rendezvous.self.machine = MachineId();
  rendezvous.self.settings = options.settings;
  rendezvous.self.settings.push_back(
      {"--collective", options.collective, "start all ranks with the same --collective"});
  rendezvous.self.settings.push_back(
      {"--rdma-mode", options.rdma_mode, "start all ranks with the same --rdma-mode"});
  rendezvous.self.settings.push_back({"exchange slot bytes", std::to_string(options.slot_bytes),
                                      "install the same build on every node"});
  return rendezvous;
}

StatusOr<UniqueFd> ListenAt(const BootstrapOptions& options) {
  UniqueFd listener;
  if (options.rendezvous_fd >= 0) {
    listener = UniqueFd(options.rendezvous_fd);
    (void)fcntl(listener.get(), F_SETFL, fcntl(listener.get(), F_GETFL) | O_NONBLOCK);
    (void)fcntl(listener.get(), F_SETFD, FD_CLOEXEC);
  } else {
    LOCKSTEP_ASSIGN_OR_RETURN(const Endpoint endpoint, ParseEndpoint(options.rendezvous));
    LOCKSTEP_ASSIGN_OR_RETURN(listener, ListenTcp(endpoint));
    // Debian's /etc/hosts maps a machine's own name to 127.0.1.1, where no other machine could
    // come.
    const bool own_name =
        !IsLoopback(endpoint.host) && IsLoopback(LocalEndpoint(listener.get()).host);
    if (own_name && !options.secret.empty()) {
      listener.Reset();
      LOCKSTEP_ASSIGN_OR_RETURN(listener, ListenTcp({"0.0.0.0", endpoint.port}));
    }
  }
  const Endpoint where = LocalEndpoint(listener.get());
  if (options.secret.empty() && !IsLoopback(where.host)) {
    return UsageError(
        "ranks on other machines can reach %s, so a cluster secret is needed: give all ranks the "
        "same "
        "--secret-file (openssl rand -hex 32 > secret; chmod 600 secret)",
        where.Text());
  }
  return listener;
}

StatusOr<std::unique_ptr<Membership>> BootstrapByAddress(const BootstrapOptions& options) {
  const RendezvousOptions rendezvous = MakeRendezvousOptions(options, options.secret);
  Joined joined;
  if (options.rank == 0) {
    LOCKSTEP_ASSIGN_OR_RETURN(UniqueFd listener, ListenAt(options));
    LOCKSTEP_ASSIGN_OR_RETURN(joined, GatherRanks(std::move(listener), rendezvous));
  } else {
    LOCKSTEP_ASSIGN_OR_RETURN(const Endpoint endpoint, ParseEndpoint(options.rendezvous));
    LOCKSTEP_ASSIGN_OR_RETURN(joined, JoinRankZero({endpoint}, rendezvous));
  }
  return MakeMembership(options, options.secret, std::move(joined), nullptr);
}

// Where the other ranks of an mpirun may find rank 0.
StatusOr<UniqueFd> ListenForMpirun(const BootstrapOptions& options, bool one_machine,
                                   std::string* addresses) {
  std::vector<std::string> hosts;
  if (!options.interface.empty()) {
    LOCKSTEP_ASSIGN_OR_RETURN(const std::string host, AddressOfInterface(options.interface));
    hosts.push_back(host);
  } else if (one_machine) {
    hosts.push_back("127.0.0.1");
  } else {
    for (const NetworkInterface& interface : ListInterfaces()) {
      if (!interface.up || interface.loopback) continue;
      for (const std::string& address : interface.addresses) {
        if (address.find(':') == std::string::npos) hosts.push_back(address);
      }
    }
    if (hosts.empty())
      return UsageError(
          "this machine has no network address but loopback, and ranks run on others");
  }
  LOCKSTEP_ASSIGN_OR_RETURN(UniqueFd listener,
                            ListenTcp({hosts.size() == 1 ? hosts[0] : "0.0.0.0", 0}));
  const int port = LocalEndpoint(listener.get()).port;
  std::vector<std::string> texts;
  for (const std::string& host : hosts) texts.push_back(Endpoint{host, port}.Text());
  *addresses = absl::StrJoin(texts, ",");
  return listener;
}

StatusOr<std::unique_ptr<Membership>> BootstrapUnderMpirun(const BootstrapOptions& options,
                                                           bool one_machine) {
  LOCKSTEP_ASSIGN_OR_RETURN(std::unique_ptr<ProcessManager> manager,
                            ConnectProcessManager(options.start_timeout_ms));
  std::string secret = options.secret;
  Joined joined;
  if (options.rank == 0) {
    if (secret.empty()) secret = GenerateSecret();
    std::string addresses;
    LOCKSTEP_ASSIGN_OR_RETURN(UniqueFd listener, ListenForMpirun(options, one_machine, &addresses));
    LOCKSTEP_RETURN_IF_ERROR(
        manager->ShareFromRankZero(addresses + "\n" + secret, options.start_timeout_ms).status());
    LOCKSTEP_ASSIGN_OR_RETURN(
        joined, GatherRanks(std::move(listener), MakeRendezvousOptions(options, secret)));
  } else {
    LOCKSTEP_ASSIGN_OR_RETURN(const std::string shared,
                              manager->ShareFromRankZero("", options.start_timeout_ms));
    const size_t line = shared.find('\n');
    if (line == std::string::npos) return InternalError("rank 0 published no address through PMIx");
    if (secret.empty()) secret = shared.substr(line + 1);
    std::vector<Endpoint> candidates;
    const std::vector<std::string> texts = absl::StrSplit(shared.substr(0, line), ',');
    for (const std::string& text : texts) {
      LOCKSTEP_ASSIGN_OR_RETURN(const Endpoint endpoint, ParseEndpoint(text));
      candidates.push_back(endpoint);
    }
    LOCKSTEP_ASSIGN_OR_RETURN(joined,
                              JoinRankZero(candidates, MakeRendezvousOptions(options, secret)));
  }
  return MakeMembership(options, std::move(secret), std::move(joined), std::move(manager));
}

}  // namespace

bool DetectMpirun(int* rank, int* size, int* local_rank, int* local_size) {
  const int found_rank = NumberFromEnvironment("OMPI_COMM_WORLD_RANK");
  const int found_size = NumberFromEnvironment("OMPI_COMM_WORLD_SIZE");
  if (found_rank < 0 || found_size < 1 || found_rank >= found_size) return false;
  *rank = found_rank;
  *size = found_size;
  const int found_local_rank = NumberFromEnvironment("OMPI_COMM_WORLD_LOCAL_RANK");
  const int found_local_size = NumberFromEnvironment("OMPI_COMM_WORLD_LOCAL_SIZE");
  *local_rank = found_local_rank < 0 ? 0 : found_local_rank;
  *local_size = found_local_size < 1 ? 1 : found_local_size;
  return true;
}

StatusOr<int> ListenForRanks(const std::string& host, std::string* rendezvous) {
  LOCKSTEP_ASSIGN_OR_RETURN(UniqueFd listener, ListenTcp({host, 0}));
  *rendezvous = Endpoint{host, LocalEndpoint(listener.get()).port}.Text();
  (void)fcntl(listener.get(), F_SETFD, 0);
  return listener.Release();
}

StatusOr<std::unique_ptr<Membership>> Bootstrap(const BootstrapOptions& options) {
  LOCKSTEP_RETURN_IF_ERROR(CheckOptions(options));
  if (options.size == 1) return MakeSingleMembership(options);
  if (!options.rendezvous.empty() || options.rendezvous_fd >= 0) return BootstrapByAddress(options);
  int rank = 0, size = 0, local_rank = 0, local_size = 0;
  if (!DetectMpirun(&rank, &size, &local_rank, &local_size)) {
    return UsageError(
        "%d ranks need an address at which rank 0 waits: set --rendezvous host:port, or start them "
        "with mpirun",
        options.size);
  }
  if (rank != options.rank || size != options.size) {
    return UsageError(
        "mpirun started this process as rank %d of %d, but the options say rank %d of %d", rank,
        size, options.rank, options.size);
  }
  return BootstrapUnderMpirun(options, local_size == size);
}

}  // namespace lockstep
