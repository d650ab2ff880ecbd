// Reads pieces of files before they are asked for, in an order that is known beforehand, so that a
// disk never waits for what is done with the bytes: several large reads past the page cache at a
// time, into a bounded number of blocks.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "runtime/base/file.h"
#include "runtime/base/status.h"
#include "runtime/tensor/buffer.h"

namespace lockstep {

// A piece of a file that will be read.
struct PlannedRead {
  const RandomAccessFile* file = nullptr;
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

struct ReadAheadLimits {
  // Reads in flight: enough for NVMe drives and for network file systems.
  int threads = 4;
  // Read at once; a multiple of kDirectBytes.
  uint64_t block_bytes = uint64_t{4} << 20;
  // Blocks in memory, being read or not yet taken.
  int blocks = 16;
};

class ReadAhead {
 public:
  // The memory that reading `plan` takes: that of all blocks, or of fewer if it has fewer pieces.
  static uint64_t BytesFor(const std::vector<PlannedRead>& plan,
                           const ReadAheadLimits& limits = {});

  // Begins to read `plan`, whose files must outlive it. An error if there is no memory.
  static StatusOr<std::unique_ptr<ReadAhead>> Start(const std::vector<PlannedRead>& plan,
                                                    const ReadAheadLimits& limits = {});
  ~ReadAhead();
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

  // Fills `out` from `offset` of `file`. What the plan has is waited for; the order may differ from
  // the plan's by what the blocks hold. What is asked for earlier than that, or is not planned, is
  // read here and now. Any thread, as long as no two ask for the same planned bytes.
  Status Read(const RandomAccessFile& file, uint64_t offset, std::span<std::byte> out);

 private:
  enum class State : uint8_t {
    kPlanned,
    kReading,
    kReady,    // or failed: `status`
    kLeftOut,  // asked for when no block was free: is read from the file when it is asked for
    kTaken,    // every byte was
  };
  // Lies in one block of its file, so that it fits into a block of memory with what stands around
  // it.
  struct Piece {
    const RandomAccessFile* file = nullptr;
    uint64_t begin = 0, end = 0;  // in the file
    uint64_t left = 0;            // bytes not yet taken
    State state = State::kPlanned;
    std::byte* block = nullptr;  // kReading, kReady: holds the file from `first` on
    uint64_t first = 0;
    Status status = OkStatus();
  };

  explicit ReadAhead(const ReadAheadLimits& limits) : limits_(limits) {}
  size_t Blocks() const { return std::min(pieces_.size(), static_cast<size_t>(limits_.blocks)); }
  void AddPieces(const std::vector<PlannedRead>& plan);
  void ReadPieces();
  // The piece that holds this byte, if it is in memory or comes into it soon.
  Piece* Find(const RandomAccessFile& file, uint64_t offset);
  // Until its bytes are there; false if no block is left for them, and it is now left out.
  bool WaitFor(Piece& piece, std::unique_lock<std::mutex>& lock);
  void Take(Piece* piece, uint64_t bytes);

  const ReadAheadLimits limits_;
  Buffer memory_;
  std::mutex mutex_;                 // over what follows
  std::condition_variable changed_;  // a piece is ready, a block is free, or all ends
  std::deque<Piece> pieces_;         // those before the first that is not yet taken are gone
  size_t next_ = 0;                  // of them: the next to be read
  std::vector<std::byte*> free_;
  bool stop_ = false;
  std::vector<std::jthread> threads_;
};

}  // namespace lockstep
