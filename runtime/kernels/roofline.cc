#include "runtime/kernels/roofline.h"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <utility>

#include "runtime/base/clock.h"

namespace lockstep::kernels {
namespace {

constexpr int64_t kLineWords = 64 / sizeof(uint64_t);

// A word of every line: the memory moves whole lines, and nothing else should take time.
template <int kStreams, int64_t kAheadBytes>
uint64_t ReadStreams(const uint64_t* memory, int64_t lines) {
  // At distances that no cache maps to one place; what is left out is nothing to speak of.
  constexpr int64_t kOdd = 37;
  const int64_t length = lines / kStreams - kOdd;
  uint64_t sums[kStreams] = {};
  for (int64_t i = 0; i < length; ++i) {
    for (int stream = 0; stream < kStreams; ++stream) {
      const uint64_t* line = memory + (stream * length + i) * kLineWords;
      if constexpr (kAheadBytes != 0) {
        __builtin_prefetch(reinterpret_cast<const std::byte*>(line) + kAheadBytes);
      }
      sums[stream] ^= *line;
    }
  }
  for (int stream = 1; stream < kStreams; ++stream) sums[0] ^= sums[stream];
  return sums[0];
}

template <size_t... kIndex>
uint64_t ReadAs(size_t way, const uint64_t* memory, int64_t lines, std::index_sequence<kIndex...>) {
  uint64_t sum = 0;
  ((way == kIndex ? void(sum = ReadStreams<ReadTest::kWays[kIndex].streams,
                                           ReadTest::kWays[kIndex].ahead_bytes>(memory, lines))
                  : void()),
   ...);
  return sum;
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
  const auto words = static_cast<int64_t>(memory_.bytes() / sizeof(uint64_t)) / pool.count();
  const size_t way = passes_++ % std::size(kWays);
  const int64_t start_ns = NowNs();
  pool.ParallelFor(pool.count(), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t part = begin; part < end; ++part) {
      uint64_t sum = ReadAs(way, memory_.as<uint64_t>() + part * words, words / kLineWords,
                            std::make_index_sequence<std::size(kWays)>());
      asm volatile("" : "+r"(sum));
    }
  });
  return Seconds(start_ns);
}

double ReadTest::FastestPass(ThreadPool& pool) {
  double seconds = Pass(pool);
  for (size_t more = 1; more < std::size(kWays); ++more) seconds = std::min(seconds, Pass(pool));
  return seconds;
}

PeakArithmetic MeasurePeak(const ProductLoop& loop, ThreadPool& pool) {
  constexpr int kPasses = 5;
  constexpr int64_t kRounds = 1'000'000;  // some milliseconds
  PeakArithmetic peak{loop.instruction, 0};
  if (loop.run == nullptr) return peak;
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
