// The files that WriteShards writes: one .part per rank and beside each its journal, which says
// what the .part holds and excludes other writers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/weights/shard_file.h"

namespace lockstep {

// A descriptor of a file that is made if need be and that nobody else writes from now on: of
// several processes that call this one gets it, until it closes it, and for the others it is an
// error.
StatusOr<int> OpenLocked(const std::string& path);

// The writing of one set of rank files. Write and Done may be called from any thread.
class ShardOutput {
 public:
  struct Pace {
    uint64_t bytes = 0;  // the journal is brought up to date after so many bytes
    int64_t ms = 0;      // or so long
  };
  // `headers` (of all ranks or of one, placed) and `sizes` of the files must outlive the output.
  // The tasks are the tensors of headers[0]; `places` says for each the index of its tensor in
  // every header.
  ShardOutput(std::string directory, std::vector<ShardHeader>* headers, std::vector<uint64_t> sizes,
              std::vector<std::vector<size_t>> places, Pace pace);
  ~ShardOutput();
  ShardOutput(const ShardOutput&) = delete;
  ShardOutput& operator=(const ShardOutput&) = delete;

  // Makes the directory, takes over what an earlier start left if it was for the same settings.
  Status Open();
  // All files are there already, whole and for these settings.
  bool complete() const { return complete_; }
  bool IsDone(size_t task) const { return done_[task]; }
  Status Write(size_t rank, uint64_t offset, std::span<const std::byte> bytes);
  // All slices of a task are written: one checksum per rank.
  Status Done(size_t task, const std::vector<uint64_t>& checksums);
  // What is done stands in the journal.
  Status Sync();
  // Headers, then names: after this the files are whole.
  Status Finish();

 private:
  std::string FinalPath(size_t rank) const;
  std::string PartPath(size_t rank) const { return FinalPath(rank) + ".part"; }
  std::string JournalPath(size_t rank) const;
  std::string JournalTitle(size_t rank) const;
  Status LockJournal(size_t rank);
  Status CheckOthers() const;
  // The done tasks of a rank's journal, or nothing if it is not of these settings; returns the
  // length of its valid part.
  size_t ReadJournal(const std::string& text, size_t rank, std::vector<bool>* done);
  Status OpenRank(size_t rank);
  bool IsFinished(size_t rank) const;
  Status CheckSpace() const;
  Status SyncLocked();

  const std::string directory_;
  std::vector<ShardHeader>& headers_;
  const std::vector<uint64_t> sizes_;
  const std::vector<std::vector<size_t>> places_;
  const Pace pace_;
  std::vector<int> files_;  // -1: this rank's file has its name already
  std::vector<int> journals_;
  bool complete_ = false;
  std::vector<bool> done_;  // by all ranks whose files are not whole

  std::mutex mutex_;                  // over what follows, and over done checksums
  std::vector<std::string> pending_;  // lines for each rank's journal
  uint64_t pending_bytes_ = 0;
  int64_t synced_ns_ = 0;
};

}  // namespace lockstep
