// What `lockstep doctor` sees of one machine: memory, disk, pages, clocks, cards and their drivers;
// and what is wrong with it. Both are read from the system (base/os.h) and the conclusions are
// pure.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/base/status.h"

namespace lockstep {

struct NetworkCard {
  std::string interface;
  std::string driver;
  int64_t megabits = 0;      // per second, nominal
  double slot_megabits = 0;  // what its PCIe link carries; 0: not known
};

struct RdmaCard {
  std::string device;
  std::string board;
  std::string firmware;
  bool active = false;  // its first port
};

// A file of `lockstep shard`: one rank's part of a model.
struct RankFile {
  int rank = 0;
  int ranks = 0;
  uint64_t bytes = 0;
};

// 0, nothing and empty: not known, or not there.
struct MachineFacts {
  std::string product;  // "NVIDIA DGX Spark"
  std::string system;   // "Linux 6.11.0-1016-nvidia"
  uint64_t memory_bytes = 0;
  uint64_t available_bytes = 0;
  std::optional<uint64_t> lockable_bytes;  // ulimit -l; UINT64_MAX: no limit
  std::string huge_pages;                  // of always, madvise and never
  std::string governor;
  std::string governor_driver;
  std::string clock_source;
  std::optional<bool> clock_synchronized;
  std::vector<NetworkCard> network;  // that are up
  std::vector<RdmaCard> rdma;
  std::string nvidia_driver;
  // AMD's processors with a large GPU (Strix Halo).
  bool strix_halo = false;
  std::optional<uint64_t> carved_bytes;  // that the firmware keeps for the GPU
  std::optional<uint64_t> gtt_bytes;     // that the GPU may have of the rest
  // Macs: what the GPU may hold; 0: as macOS decides. Nothing: no Mac.
  std::optional<uint64_t> wired_limit_mib;
  // The model, where one is named.
  std::string model;
  uint64_t model_bytes = 0;          // of its files on this machine; 0: it is not here
  std::vector<RankFile> rank_files;  // those of them that hold one rank's part
  uint64_t disk_free_bytes = 0;
};

// `root`: "" for this machine; a folder with a /proc and a /sys in tests.
MachineFacts ReadMachine(const std::string& root);
// Adds what is known of the files of `model`, a path or "".
void LookAtModel(const std::string& model, MachineFacts* facts);

// How large the whole model is, by what this machine has of it: rank files are scaled up. 0:
// nothing is here. `shares`: of each rank of this run.
uint64_t WholeModelBytes(const MachineFacts& facts, std::span<const double> shares);

// A few lines.
std::vector<std::string> Describe(const MachineFacts& facts);

struct MachineFindings {
  std::vector<std::string> faults;  // each with what to do
  std::vector<std::string> notes;   // what will matter when kernels run on GPUs
};
// `model_bytes`: of the whole model, as far as a machine of the cluster knows; `share`: this
// machine's part of it.
MachineFindings ExamineMachine(const MachineFacts& facts, uint64_t model_bytes, double share);

// What should be alike on all machines, by what it is the version of.
std::map<std::string, std::string> Versions(const MachineFacts& facts);

}  // namespace lockstep
