// The file in which a rank keeps KV blocks over a restart: which tokens they hold, and the bytes of
// this rank's pages. Little-endian:
//   0..7    "LKSTEPKV"
//   8..15   1, the version
//   16..23  bytes of the header
//   24..31  Digest64 of the header
//   32..    the header: key, rank, ranks, page_bytes, save, the blocks' `before`, their tokens
//   then    for each block its page_bytes bytes and their Digest64, seeded with save + its place
// What is in a page is the model's matter. A digest finds damage, not intent: whoever may write the
// file may say what the pages hold, so one that another user may write is not read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/base/file.h"
#include "runtime/base/status.h"
#include "runtime/cache/block_pool.h"

namespace lockstep {

struct KeptHeader {
  std::string key;  // lines of printable ASCII: all that decides the bits of the pages
  int32_t rank = 0, ranks = 1;
  uint64_t page_bytes = 0;           // of one block
  uint64_t save = 0;                 // a number of this save's own, in the files of all its ranks
  std::vector<ChainedBlock> blocks;  // as BlockPool::Idle gives them
};

// Blocks that a file, and the plan of its save, hold at most.
inline constexpr int64_t kMostKeptBlocks = 800'000;
inline constexpr uint64_t kMostKeptKeyBytes = 4096;
inline constexpr uint64_t kKeptPreambleBytes = 32;

// "rank-0-of-2.kv".
std::string KeptFileName(int rank, int ranks);

// A header's bytes, with behind it `body_bytes` of the file. An error where a size lies, a block
// stands behind none before it, two are the same, or what follows is not one page for each. The
// text says what is wrong and not in which file.
StatusOr<KeptHeader> ParseKeptHeader(std::span<const std::byte> bytes, uint64_t body_bytes);

class KeptReader {
 public:
  // Reads and checks all but the pages; null: there is no file. Allocates no more than the file is
  // long. An error also if it or its directory is not this user's alone to write (own_file.h).
  static StatusOr<std::unique_ptr<KeptReader>> Open(const std::string& path);
  const KeptHeader& header() const { return header_; }
  // Fills `page`, of header().page_bytes, with the block at `place` of the list; an error if its
  // bytes are not those that were written.
  Status Read(size_t place, std::span<std::byte> page) const;

 private:
  KeptReader(std::unique_ptr<RandomAccessFile> file, KeptHeader header, uint64_t pages_at)
      : file_(std::move(file)), header_(std::move(header)), pages_at_(pages_at) {}
  const std::unique_ptr<RandomAccessFile> file_;
  const KeptHeader header_;
  const uint64_t pages_at_;
};

// Begin, Append for each block in order, End, Replace. Without the last, what had the name keeps
// it.
class KeptWriter {
 public:
  // The file is its owner's alone (0600).
  static StatusOr<std::unique_ptr<KeptWriter>> Begin(const std::string& path,
                                                     const KeptHeader& header);
  Status Append(std::span<const std::byte> page);
  Status End() { return file_->Sync(); }
  Status Replace() { return file_->Replace(); }

 private:
  KeptWriter(std::unique_ptr<FileReplacement> file, uint64_t save)
      : file_(std::move(file)), next_seed_(save) {}
  const std::unique_ptr<FileReplacement> file_;
  uint64_t next_seed_;
};

}  // namespace lockstep
