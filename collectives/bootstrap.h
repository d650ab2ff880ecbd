// Who is there: finds the ranks, proves the cluster secret, compares what must be equal, and opens
// the control channel and the group. Three ways in: mpirun's environment (PMIx), an address (YAML
// or flags), or a parent process that spawned the ranks. A single process without any of them is a
// group of one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "collectives/group.h"
#include "collectives/rank_meter.h"
#include "runtime/base/status.h"
#include "transport/delay.h"
#include "transport/fabric.h"

namespace lockstep {

// One thing on which all ranks must agree, shown with both values when they do not.
struct Setting {
  std::string name;    // "source version", "model digest", "shares"
  std::string value;   // short and readable
  std::string remedy;  // what to do when they differ
};

inline constexpr size_t kLargestSlotBytes = size_t{1} << 30;

struct BootstrapOptions {
  int rank = 0;
  int size = 1;
  std::string collective = "tcp";  // tcp, shm, rdma, mpi, nccl
  std::string rdma_mode = "auto";  // rc, uc, auto
  std::string rendezvous;          // host:port of rank 0; empty under mpirun (travels through PMIx)
  // Rank 0 only: a socket that already listens (ListenForRanks), instead of listening on
  // `rendezvous`, so that a spawner can choose a free port without a race. Bootstrap takes it over
  // and closes it. -1: none.
  int rendezvous_fd = -1;
  std::string interface;  // network interface for data; empty: the one that reaches rank 0
  std::string secret;  // proven in the handshake; may be empty only when every address is loopback
  std::vector<Setting> settings;
  int64_t start_timeout_ms = 60'000;
  int64_t exchange_timeout_ms = 30'000;
  int64_t peer_timeout_ms = 10'000;
  bool verify_exchanges = false;        // equal on all ranks, as in GroupOptions
  size_t slot_bytes = size_t{1} << 20;  // of a group for which nothing else is said
  // How many ranks share this machine, when the caller knows (a spawner); 0: counted by boot id.
  int ranks_on_this_host = 0;
  // By which the links of groups deliver later (those of OpenMesh do not); null: none.
  std::shared_ptr<const AddedLatency> added_latency;
};

struct RankInfo {
  int rank = 0;
  int pid = 0;
  std::string host;
  std::string address;
  std::string Name() const;  // "rank 1 (spark-2, pid 4711)"
};

// The ranks that joined; owns the control channel (heartbeats, aborts). Destroy the group first.
class Membership {
 public:
  virtual ~Membership() = default;
  virtual const std::vector<RankInfo>& ranks() const = 0;
  // This process's place among the ranks of its own host, and how many there are: to share the
  // cores.
  virtual int local_rank() const = 0;
  virtual int local_size() const = 0;
  // Whether these outnumber its cores: a rank that spins keeps the one it waits for from running.
  bool crowded() const;
  // OK while every rank is alive and nobody aborted; else why (PeerLost names the rank).
  virtual Status Health() const = 0;
  // Tells everyone why this rank stops, and makes Health() return it. Returns after it was sent or
  // 200 ms passed.
  virtual void Abort(const Status& reason) = 0;
  // Announces an orderly end, so that peers do not take the closing connection for a death.
  virtual void Leave() = 0;
  // Opens a data group over `collective` (empty: as the options say) with slots of that size, a
  // multiple of 64 bytes (0: as in the options). Collective: all ranks call it with the same.
  // Groups may stand beside each other.
  virtual StatusOr<std::unique_ptr<Group>> OpenGroup(const std::string& collective,
                                                     size_t slot_bytes = 0) = 0;
  StatusOr<std::unique_ptr<Group>> OpenGroup(size_t slot_bytes = 0) {
    return OpenGroup("", slot_bytes);
  }
  // A group of the `count` ranks from `first` on alone, of which this one is one, counted from
  // there. Collective: all ranks of the membership call it, each with the ranks beside it, and with
  // the same count and slots. Over links only (tcp, shm, rdma), unless a rank is alone in it.
  virtual StatusOr<std::unique_ptr<Group>> OpenPartGroup(int first, int count,
                                                         size_t slot_bytes) = 0;
  // What a group as the options say takes of this rank's memory; of `ranks` ranks, 0: of all.
  virtual uint64_t GroupBytes(size_t slot_bytes, int ranks = 0) const = 0;
  // Bare links to all other ranks, to measure what a transport gives without a group. Collective,
  // as OpenGroup, with equal windows; an error for one that has no links (mpi, nccl). An error is
  // this rank's alone: it ends nobody else, whom the caller or the start timeout must tell.
  virtual StatusOr<Mesh> OpenMesh(const std::string& transport, size_t window_bytes) = 0;
  // The own addresses at which links over a transport may be opened, best first.
  virtual StatusOr<std::vector<std::string>> DataHosts(const std::string& transport) const = 0;
  // A keyed digest that only ranks of this session can make: by it the ends of connections that are
  // opened elsewhere prove who they are.
  virtual Proof Sign(std::span<const std::byte> data) const = 0;

  // What this rank counts of itself; rank 0 hears of it.
  RankMeter& meter() { return meter_; }
  // As in the options, for links that are opened elsewhere.
  const std::shared_ptr<const AddedLatency>& added_latency() const { return added_latency_; }
  // Rank 0: what is known of every rank, by rank. Any thread.
  virtual std::vector<RankNews> News() const = 0;

 protected:
  RankMeter meter_;
  std::shared_ptr<const AddedLatency> added_latency_;
};

StatusOr<std::unique_ptr<Membership>> Bootstrap(const BootstrapOptions& options);

// For a spawner: listens on a free port of `host` and writes "host:port" to *rendezvous. The
// descriptor is for BootstrapOptions::rendezvous_fd of rank 0 and survives exec; close it in every
// other process, so that connections fail as soon as rank 0 is dead.
StatusOr<int> ListenForRanks(const std::string& host, std::string* rendezvous);

// What mpirun says about this process, if it runs under one: fills rank and size. False if not
// under mpirun.
bool DetectMpirun(int* rank, int* size, int* local_rank, int* local_size);

// The secret file's content; refused if others than its owner can read it.
StatusOr<std::string> ReadSecretFile(const std::string& path);
// 32 random bytes, as hex.
std::string GenerateSecret();

}  // namespace lockstep
