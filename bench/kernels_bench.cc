// What the quantized products of the CPU backend reach: `kernels_bench [THREADS] [FORMAT,..]
// [ROWS,..] [exact]` multiplies matrices of the experts of GLM-4.7 (3072 x 5120, enough of them to
// be far beyond the caches), one after the other, and prints per format and number of rows one JSON
// line: GB/s of weights, the share of what plain reading reaches in the same run, and Gop/s (two
// per weight and row). With many rows the figure to look at is Gop/s.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/base/os.h"
#include "runtime/kernels/backend.h"

namespace lockstep {
namespace {

constexpr int64_t kInputs = 5120;
constexpr int64_t kOutputs = 3072;
constexpr uint64_t kBytes = uint64_t{768} << 20;
constexpr int kPasses = 5;

struct NamedFormat {
  const char* name;
  WeightFormat format;
};

std::vector<NamedFormat> Formats() {
  std::vector<NamedFormat> formats = {{"f32", DType::kF32},
                                      {"f16", DType::kF16},
                                      {"bf16", DType::kBF16},
                                      {"fp8", WeightFormat::Fp8(kWholeRow)},
                                      {"fp8-tiles", WeightFormat::Fp8(4)}};
  const std::pair<const char*, Encoding> encodings[] = {
      {"q4_0", Encoding::kQ4_0},   {"q8_0", Encoding::kQ8_0},    {"q4_k", Encoding::kQ4_K},
      {"q6_k", Encoding::kQ6_K},   {"q5_k", Encoding::kQ5_K},    {"q4_1", Encoding::kQ4_1},
      {"q5_0", Encoding::kQ5_0},   {"q5_1", Encoding::kQ5_1},    {"q2_k", Encoding::kQ2_K},
      {"q3_k", Encoding::kQ3_K},   {"iq4_nl", Encoding::kIq4Nl}, {"iq4_xs", Encoding::kIq4Xs},
      {"mxfp4", Encoding::kMxfp4}, {"nvfp4", Encoding::kNvfp4}};
  for (const auto& [name, encoding] : encodings)
    formats.push_back({name, WeightFormat::Of(encoding)});
  formats.push_back({"mlx4", WeightFormat::Mlx(4, 64, DType::kBF16)});
  formats.push_back({"mlx8", WeightFormat::Mlx(8, 64, DType::kBF16)});
  return formats;
}

std::vector<std::string> Split(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

// GB/s of reading `bytes` in kStreams streams per thread, as PanelTile's rows lie.
double ReadGbPerS(ThreadPool& pool, const std::byte* memory, uint64_t bytes) {
  typedef uint64_t Words __attribute__((vector_size(64), aligned(64)));
  constexpr int64_t kStreams = 4;
  const auto* words = reinterpret_cast<const Words*>(memory);
  const auto count = static_cast<int64_t>(bytes / sizeof(Words) / kStreams);
  double best = 0;
  uint64_t keep = 0;
  std::vector<uint64_t> sums(static_cast<size_t>(pool.count()));
  for (int pass = 0; pass < kPasses; ++pass) {
    const int64_t start = NowNs();
    pool.ParallelFor(count, 64, [&](int64_t begin, int64_t end, int thread) {
      Words sum[kStreams] = {};
      const Words* from = words + begin * kStreams;
      const int64_t length = end - begin;
      for (int64_t i = 0; i < length; ++i) {
        for (int64_t s = 0; s < kStreams; ++s) sum[s] ^= from[s * length + i];
      }
      sums[static_cast<size_t>(thread)] = (sum[0] ^ sum[1] ^ sum[2] ^ sum[3])[0];
    });
    const double seconds = static_cast<double>(NowNs() - start) * 1e-9;
    best = std::max(best, static_cast<double>(bytes) / seconds * 1e-9);
    for (const uint64_t sum : sums) keep += sum;
  }
  return keep == 1 ? 0 : best;
}

// Scales of about 2^-10 wherever they stand: every second byte of a matrix has few bits set.
HostMatrix RandomStack(const WeightFormat& format) {
  const uint64_t each = LayoutOf(format, kInputs, 0).row_bytes * kOutputs;
  const auto count = static_cast<int64_t>(std::max<uint64_t>(kBytes / each, 2));
  HostMatrix matrix =
      HostMatrix::Allocate(format, count, kOutputs, kInputs, "the benchmark").value();
  std::minstd_rand random(1);
  auto* words = matrix.data.as<uint32_t>();
  for (uint64_t i = 0; i < matrix.data.bytes() / 4; ++i) words[i] = random() & 0x17ff17ffu;
  return matrix;
}

struct Measured {
  double seconds = 1e9;  // the best pass over the whole stack
};

Measured Measure(const kernels::Backend& backend, ThreadPool& pool,
                 const kernels::PackedMatrix& stack, int64_t rows) {
  kernels::Queue queue{&pool};
  std::vector<float> x(static_cast<size_t>(rows * kInputs) + 16);
  std::minstd_rand random(2);
  for (float& value : x) value = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
  std::vector<float> y(static_cast<size_t>(rows * stack.outputs()));
  // One group per call: every matrix sees all rows, as a layer's experts see theirs.
  std::vector<int32_t> row_of(static_cast<size_t>(rows));
  for (int64_t row = 0; row < rows; ++row) row_of[static_cast<size_t>(row)] = static_cast<int>(row);
  kernels::RowGroup group{0, 0, static_cast<int32_t>(rows)};
  int32_t one = 1;
  const kernels::ExpertGroups groups{&group, &one, row_of.data(), nullptr};
  Measured best;
  const int passes = rows > 16 ? 1 : kPasses;
  // With many rows a few matrices suffice.
  const int64_t count = rows > 16 ? std::min<int64_t>(stack.count(), 12) : stack.count();
  for (int pass = 0; pass < passes; ++pass) {
    const int64_t start = NowNs();
    for (group.matrix = 0; group.matrix < count; ++group.matrix) {
      backend.GroupedMatMul(queue, stack, groups, x.data(), true, y.data(), stack.outputs());
    }
    const double seconds = static_cast<double>(NowNs() - start) * 1e-9;
    best.seconds = std::min(
        best.seconds, seconds * static_cast<double>(stack.count()) / static_cast<double>(count));
  }
  return best;
}

int Main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : static_cast<int>(os::AllowedCpus().size());
  const auto names = Split(argc > 2 ? argv[2] : "q4_0,q8_0,q4_k,q6_k");
  const auto row_counts = Split(argc > 3 ? argv[3] : "1,8,32,128");
  const bool exact = argc > 4 && std::strcmp(argv[4], "exact") == 0;
  if (threads < 1) {
    std::fprintf(stderr, "usage: kernels_bench [THREADS] [FORMAT,..] [ROWS,..] [exact|SET]\n");
    return 2;
  }
  ThreadPool pool(threads);
  const char* set = argc > 4 && !exact ? argv[4] : "cpu";
  auto made =
      kernels::MakeBackend(set, exact ? kernels::Precision::kExact : kernels::Precision::kFast);
  if (!made.ok()) {
    std::fprintf(stderr, "kernels_bench: %s\n", MessageOf(made.status()).c_str());
    return 2;
  }
  const auto backend = std::move(made).value();
  for (const NamedFormat& format : Formats()) {
    if (std::find(names.begin(), names.end(), format.name) == names.end()) continue;
    HostMatrix matrix = RandomStack(format.format);
    const uint64_t bytes = matrix.data.bytes() / 256 * 256;
    const std::byte* memory = matrix.data.data();
    const int64_t start = NowNs();
    const auto stack = backend->Pack(std::move(matrix)).value();
    const double pack_seconds = static_cast<double>(NowNs() - start) * 1e-9;
    const double read = ReadGbPerS(pool, memory, bytes);
    for (const std::string& text : row_counts) {
      const int64_t rows = std::atoll(text.c_str());
      if (rows < 1) continue;
      const Measured best = Measure(*backend, pool, *stack, rows);
      const double gb_per_s = static_cast<double>(bytes) / best.seconds * 1e-9;
      const double gops = 2.0 * static_cast<double>(rows * stack->count() * kOutputs * kInputs) /
                          best.seconds * 1e-9;
      std::printf(
          "{\"kernels\": \"%s\", \"threads\": %d, \"format\": \"%s\", \"rows\": %lld, "
          "\"gb_per_s\": %.2f, \"read_gb_per_s\": %.2f, \"share\": %.3f, \"gop_per_s\": %.1f, "
          "\"pack_gb_per_s\": %.2f}\n",
          backend->name().c_str(), threads, format.name, static_cast<long long>(rows), gb_per_s,
          read, gb_per_s / read, gops, static_cast<double>(bytes) / pack_seconds * 1e-9);
      std::fflush(stdout);
    }
  }
  return 0;
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) { return lockstep::Main(argc, argv); }
