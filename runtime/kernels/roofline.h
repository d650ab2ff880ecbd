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
  // Runs that one thread reads side by side: which number is the fastest differs by machine, so
  // passes take turns.
  static constexpr int kStreams[] = {1, 4, 8};

  static StatusOr<ReadTest> Create(ThreadPool& pool, uint64_t bytes_per_thread = kBytesPerThread);
  uint64_t bytes() const { return memory_.bytes(); }
  // Every thread reads its part once; the seconds that took. Three passes try all streams.
  double Pass(ThreadPool& pool);

 private:
  Buffer memory_;
  size_t passes_ = 0;
};

struct PeakArithmetic {
  std::string instruction;  // what was repeated: "vpdpbusd zmm"
  double gop_per_s = 0;     // of all threads of the pool; a multiplication and an addition are two
};

// The best of some passes over registers alone, with the instruction of most products.
PeakArithmetic MeasurePeak(const ProductLoop& loop, ThreadPool& pool);

// Nanoseconds of a parallel loop that does nothing: what the threads need to find each other.
double MeasureBarrierNs(ThreadPool& pool);

}  // namespace lockstep::kernels
