#include "runtime/kernels/roofline.h"

#include <algorithm>
#include <iterator>

#include "runtime/base/clock.h"

namespace lockstep::kernels {
namespace {

// Integers may be added in any order, so that the compiler uses what the target has.
typedef uint64_t Words __attribute__((vector_size(64), aligned(64)));

template <int kStreams>
uint64_t ReadStreams(const Words* memory, int64_t count) {
  // At distances that no cache maps to one place; what is left out is nothing to speak of.
  constexpr int64_t kOdd = 37;
  Words sums[kStreams] = {};
  const int64_t length = count / kStreams - kOdd;
  for (int64_t i = 0; i < length; ++i) {
    for (int stream = 0; stream < kStreams; ++stream) sums[stream] ^= memory[stream * length + i];
  }
  for (int stream = 1; stream < kStreams; ++stream) sums[0] ^= sums[stream];
  return sums[0][0];
}

double Seconds(int64_t start_ns) { return static_cast<double>(NowNs() - start_ns) * 1e-9; }

}  // namespace

StatusOr<ReadTest> ReadTest::Create(ThreadPool& pool, uint64_t bytes_per_thread) {
  // Whole words for every stream.
  const uint64_t part = std::max<uint64_t>(1, bytes_per_thread >> 20) << 20;
  ReadTest test;
  LOCKSTEP_ASSIGN_OR_RETURN(
      test.memory_, Buffer::Allocate(part * static_cast<uint64_t>(pool.count()), "the read test"));
  auto* words = test.memory_.as<uint64_t>();
  pool.ParallelFor(pool.count(), 1, [&](int64_t begin, int64_t end, int) {
    const int64_t count = static_cast<int64_t>(part / sizeof(uint64_t));
    for (int64_t i = begin * count; i < end * count; ++i) words[i] = static_cast<uint64_t>(i);
  });
  return test;
}

double ReadTest::Pass(ThreadPool& pool) {
  const auto count =
      static_cast<int64_t>(memory_.bytes() / sizeof(Words) / static_cast<uint64_t>(pool.count()));
  const auto* words = memory_.as<Words>();
  constexpr uint64_t (*kReads[])(const Words*, int64_t) = {
      ReadStreams<kStreams[0]>, ReadStreams<kStreams[1]>, ReadStreams<kStreams[2]>};
  const auto read = kReads[passes_++ % std::size(kReads)];
  const int64_t start_ns = NowNs();
  pool.ParallelFor(pool.count(), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t part = begin; part < end; ++part) {
      uint64_t sum = read(words + part * count, count);
      asm volatile("" : "+r"(sum));
    }
  });
  return Seconds(start_ns);
}

PeakArithmetic MeasurePeak(const ProductLoop& loop, ThreadPool& pool) {
  constexpr int kPasses = 5;
  constexpr int64_t kRounds = 1'000'000;  // some milliseconds
  PeakArithmetic peak{loop.instruction, 0};
  const auto operations = static_cast<double>(kRounds * loop.operations_a_round * pool.count());
  for (int pass = 0; pass < kPasses; ++pass) {
    const int64_t start_ns = NowNs();
    pool.ParallelFor(pool.count(), 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) loop.run(kRounds);
    });
    peak.gop_per_s = std::max(peak.gop_per_s, operations / static_cast<double>(NowNs() - start_ns));
  }
  return peak;
}

double MeasureBarrierNs(ThreadPool& pool) {
  constexpr int kPasses = 9;
  constexpr int kLoops = 2'000;
  double best = 1e18;
  for (int pass = 0; pass < kPasses; ++pass) {
    const int64_t start_ns = NowNs();
    for (int i = 0; i < kLoops; ++i)
      pool.ParallelFor(pool.count(), 1, [](int64_t, int64_t, int) {});
    best = std::min(best, static_cast<double>(NowNs() - start_ns) / kLoops);
  }
  return best;
}

}  // namespace lockstep::kernels
