// What reading memory can reach here: `membw_bench [THREADS] [MIB_PER_THREAD]` lets every thread
// read a stretch of memory of its own, far beyond the caches, and prints one JSON line with the
// best of several passes. This is the limit that decoding is held against: a decoded token reads
// its weights once, in long runs.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/base/os.h"
#include "runtime/base/thread_pool.h"

namespace lockstep {
namespace {

constexpr int kPasses = 7;
// Independent streams per thread, as rows of a matrix are read side by side: eight rows of 10 KiB.
constexpr size_t kStreams = 8;
constexpr size_t kRowWords = 160;
constexpr size_t kWords = 8;

// Eight integers in one vector: the compiler uses what the target has, and integers may be added in
// any order.
typedef uint64_t Words __attribute__((vector_size(8 * kWords), aligned(64)));

uint64_t ReadAll(const Words* memory, size_t count) {
  Words sums[kStreams] = {};
  size_t at = 0;
  for (; at + kStreams * kRowWords <= count; at += kStreams * kRowWords) {
    for (size_t i = 0; i < kRowWords; ++i) {
      for (size_t row = 0; row < kStreams; ++row) sums[row] += memory[at + row * kRowWords + i];
    }
  }
  for (; at < count; ++at) sums[0] += memory[at];
  uint64_t sum = 0;
  for (const Words& lane : sums) {
    for (size_t i = 0; i < kWords; ++i) sum += lane[i];
  }
  return sum;
}

int Main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : static_cast<int>(os::AllowedCpus().size());
  const int64_t mib = argc > 2 ? std::atoll(argv[2]) : 512;
  if (threads < 1 || mib < 1 || mib > (int64_t{1} << 20)) {
    std::fprintf(stderr, "usage: membw_bench [THREADS] [MIB_PER_THREAD]\n");
    return 2;
  }
  const size_t bytes = static_cast<size_t>(mib) << 20;
  ThreadPool pool(threads);
  std::vector<Words*> memory(threads);
  for (Words*& part : memory) part = static_cast<Words*>(os::AllocatePages(bytes));
  if (std::find(memory.begin(), memory.end(), nullptr) != memory.end()) {
    std::fprintf(stderr, "membw_bench: no %lld MiB of memory\n",
                 static_cast<long long>(mib * threads));
    return 1;
  }
  // Every thread writes its part first, so that the pages exist and lie near it.
  pool.ParallelFor(threads, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      std::fill_n(reinterpret_cast<uint64_t*>(memory[i]), bytes / 8, 1);
  });
  double best = 0;
  uint64_t total = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    std::vector<uint64_t> sums(threads);
    const int64_t start = NowNs();
    pool.ParallelFor(threads, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) sums[i] = ReadAll(memory[i], bytes / sizeof(Words));
    });
    const double seconds = static_cast<double>(NowNs() - start) * 1e-9;
    best = std::max(best, static_cast<double>(bytes) * threads / seconds * 1e-9);
    for (const uint64_t sum : sums) total += sum;
  }
  for (Words* part : memory) os::FreePages(part, bytes);
  if (total != static_cast<uint64_t>(kPasses) * threads * (bytes / 8)) return 1;
  std::printf("{\"threads\": %d, \"mib_per_thread\": %lld, \"read_gb_per_s\": %.2f}\n", threads,
              static_cast<long long>(mib), best);
  return 0;
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) { return lockstep::Main(argc, argv); }
