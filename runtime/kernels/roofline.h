// What this machine can do at most, measured in the run that is held against it: how fast its
// threads read memory, and how fast they multiply in registers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "runtime/base/status.h"
#include "runtime/base/thread_pool.h"
#include "runtime/kernels/product_loop.h"
#include "runtime/tensor/buffer.h"

namespace lockstep::kernels {

// Memory far beyond the caches, a part for each thread of a pool, touched first by that thread.
class ReadTest {
 public:
  static constexpr uint64_t kBytesPerThread = uint64_t{256} << 20;
  // How many runs one thread reads side by side, and how far ahead of itself it asks for lines:
  // which way is the fastest differs by machine, so passes take turns.
  struct Way {
    int streams;
    int64_t ahead_bytes;
  };
  static constexpr Way kWays[] = {{1, 0}, {8, 0}, {4, 1024}, {8, 1024}};

  static StatusOr<ReadTest> Create(ThreadPool& pool, uint64_t bytes_per_thread = kBytesPerThread);
  uint64_t bytes() const { return memory_.bytes(); }
  // Every thread reads its part once; the seconds that took.
  double Pass(ThreadPool& pool);
  // One pass of each way; the seconds of the fastest.
  double FastestPass(ThreadPool& pool);

 private:
  Buffer memory_;
  size_t passes_ = 0;
};

struct PeakArithmetic {
  std::string instruction;  // what was repeated: "vpdpbusd zmm"
  double gop_per_s = 0;     // of all threads of the pool; a multiplication and an addition are two
};

// The best of some passes over registers alone, with the instruction of most products; 0 Gop/s of a
// loop that no thread of the host can run.
PeakArithmetic MeasurePeak(const ProductLoop& loop, ThreadPool& pool);

// Nanoseconds of a parallel loop that does nothing: what the threads need to find each other.
double MeasureBarrierNs(ThreadPool& pool);

}  // namespace lockstep::kernels
