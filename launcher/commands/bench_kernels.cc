// `lockstep bench kernels`: products with one expert's weights of GLM-4.7 (3072 x 5120), enough of
// them to lie far beyond the caches, one after the other. With few rows the limit is reading the
// weights, with many it is arithmetic.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "launcher/commands/bench.h"
#include "launcher/commands/bench_report.h"
#include "launcher/process.h"
#include "runtime/base/clock.h"
#include "runtime/base/os.h"
#include "runtime/kernels/backend.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kInputs = 5120;
constexpr int64_t kOutputs = 3072;
constexpr uint64_t kBytes = uint64_t{512} << 20;
constexpr int64_t kMostRows = 4096;
// With many rows a few matrices are enough.
constexpr int64_t kManyRows = 16;
constexpr int64_t kFewMatrices = 12;

struct NamedFormat {
  std::string name;
  WeightFormat format;
};

std::vector<NamedFormat> Formats() {
  std::vector<NamedFormat> formats = {
      {"f32", DType::kF32}, {"f16", DType::kF16}, {"bf16", DType::kBF16}};
  formats.push_back({"fp8", WeightFormat::Fp8(kWholeRow)});
  formats.push_back({"fp8-tiles", WeightFormat::Fp8(4)});
  const std::pair<const char*, Encoding> encodings[] = {
      {"q4_0", Encoding::kQ4_0},   {"q4_1", Encoding::kQ4_1},    {"q5_0", Encoding::kQ5_0},
      {"q5_1", Encoding::kQ5_1},   {"q8_0", Encoding::kQ8_0},    {"q2_k", Encoding::kQ2_K},
      {"q3_k", Encoding::kQ3_K},   {"q4_k", Encoding::kQ4_K},    {"q5_k", Encoding::kQ5_K},
      {"q6_k", Encoding::kQ6_K},   {"iq4_nl", Encoding::kIq4Nl}, {"iq4_xs", Encoding::kIq4Xs},
      {"mxfp4", Encoding::kMxfp4}, {"nvfp4", Encoding::kNvfp4}};
  for (const auto& [name, encoding] : encodings)
    formats.push_back({name, WeightFormat::Of(encoding)});
  for (const int bits : {4, 6, 8}) {
    formats.push_back({"mlx" + std::to_string(bits), WeightFormat::Mlx(bits, 64, DType::kBF16)});
  }
  return formats;
}

StatusOr<std::vector<NamedFormat>> ChosenFormats(const std::string& names) {
  const std::vector<NamedFormat> known = Formats();
  if (names == "all") return known;
  std::vector<NamedFormat> chosen;
  for (const std::string& name : SplitAtCommas(names)) {
    const auto found = std::find_if(known.begin(), known.end(),
                                    [&](const NamedFormat& format) { return format.name == name; });
    if (found == known.end()) {
      std::string all;
      for (const NamedFormat& format : known) all += (all.empty() ? "" : ", ") + format.name;
      return UsageError("--formats: '%s' is not one of %s; all means every one", name, all);
    }
    chosen.push_back(*found);
  }
  return chosen;
}

// Scales of about 2^-10 wherever they stand: every second byte of a matrix has few bits set.
StatusOr<HostMatrix> RandomStack(const WeightFormat& format) {
  const uint64_t each = LayoutOf(format, kInputs, 0).row_bytes * kOutputs;
  const auto count = static_cast<int64_t>(std::max<uint64_t>(kBytes / each, 2));
  LOCKSTEP_ASSIGN_OR_RETURN(
      HostMatrix matrix, HostMatrix::Allocate(format, count, kOutputs, kInputs, "the benchmark"));
  std::minstd_rand random(1);
  auto* words = matrix.data.as<uint32_t>();
  for (uint64_t i = 0; i < matrix.data.bytes() / 4; ++i) words[i] = random() & 0x17ff17ffu;
  return matrix;
}

// Products of a stack's matrices, each with all rows.
class Products {
 public:
  static StatusOr<Products> Create(const kernels::Backend& backend, ThreadPool& pool,
                                   const kernels::PackedMatrix& stack, int64_t rows) {
    Products products(backend, pool, stack, rows);
    const auto take = [&](int64_t count) {
      return backend.Allocate(static_cast<uint64_t>(count) * 4 + 64, "the benchmark's rows");
    };
    LOCKSTEP_ASSIGN_OR_RETURN(products.x_, take(rows * kInputs));
    LOCKSTEP_ASSIGN_OR_RETURN(products.y_, take(rows * stack.outputs()));
    LOCKSTEP_ASSIGN_OR_RETURN(products.row_of_, take(rows));
    LOCKSTEP_ASSIGN_OR_RETURN(products.groups_, take(3 * stack.count()));
    LOCKSTEP_ASSIGN_OR_RETURN(products.one_, take(1));
    products.Fill();
    return products;
  }

  // Seconds of one pass over the stack.
  StatusOr<double> Pass() {
    const int64_t count =
        rows_ > kManyRows ? std::min(stack_.count(), kFewMatrices) : stack_.count();
    const int64_t start_ns = NowNs();
    for (int64_t i = 0; i < count; ++i) {
      const kernels::ExpertGroups groups{groups_.as<kernels::RowGroup>() + i, one_.as<int32_t>(),
                                         row_of_.as<int32_t>(), nullptr};
      backend_.GroupedMatMul(queue_, stack_, groups, x_.as<float>(), true, y_.as<float>(),
                             stack_.outputs());
    }
    LOCKSTEP_RETURN_IF_ERROR(backend_.Finish(queue_));
    return static_cast<double>(NowNs() - start_ns) * 1e-9 * static_cast<double>(stack_.count()) /
           static_cast<double>(count);
  }

 private:
  Products(const kernels::Backend& backend, ThreadPool& pool, const kernels::PackedMatrix& stack,
           int64_t rows)
      : backend_(backend), queue_{&pool}, stack_(stack), rows_(rows) {}

  void Fill() {
    std::minstd_rand random(2);
    for (int64_t i = 0; i < rows_ * kInputs; ++i)
      x_.as<float>()[i] = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
    for (int64_t row = 0; row < rows_; ++row)
      row_of_.as<int32_t>()[row] = static_cast<int32_t>(row);
    // One group per call: a matrix sees all rows, as a layer's experts see theirs.
    for (int64_t i = 0; i < stack_.count(); ++i) {
      groups_.as<kernels::RowGroup>()[i] = {static_cast<int32_t>(i), 0,
                                            static_cast<int32_t>(rows_)};
    }
    *one_.as<int32_t>() = 1;
  }

  const kernels::Backend& backend_;
  kernels::Queue queue_;
  const kernels::PackedMatrix& stack_;
  int64_t rows_;
  Buffer x_, y_, row_of_, groups_, one_;
};

struct Bench {
  const Options& options;
  const kernels::Backend& backend;
  ThreadPool& pool;
  kernels::PeakArithmetic peak;
  Json results = Json::array();
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void PrintRow(const Json& row) {
  std::printf("%-10s %6d  %8.2f GB/s %5.1f %% of %6.2f  %8.1f Gop/s %5.1f %%\n",
              row["format"].get<std::string>().c_str(), row["rows"].get<int>(),
              row["gb_per_s"].get<double>(), 100 * row["share_of_bandwidth"].get<double>(),
              row["read_gb_per_s"].get<double>(), row["gop_per_s"].get<double>(),
              100 * row["share_of_peak"].get<double>());
  std::fflush(stdout);
}

// One format with all numbers of rows. Passes of reading stand between those of products, so that
// both meet the same moods of the machine.
Status MeasureFormat(Bench& bench, const NamedFormat& format, const std::vector<int64_t>& rows) {
  LOCKSTEP_ASSIGN_OR_RETURN(HostMatrix matrix, RandomStack(format.format));
  const uint64_t bytes = matrix.data.bytes();
  const int64_t start_ns = NowNs();
  LOCKSTEP_ASSIGN_OR_RETURN(const auto stack, bench.backend.Pack(std::move(matrix)));
  const double pack_seconds = static_cast<double>(NowNs() - start_ns) * 1e-9;
  const bool on_device = bench.backend.memory().has_value();
  LOCKSTEP_ASSIGN_OR_RETURN(kernels::ReadTest read, kernels::ReadTest::Create(bench.pool));
  for (const int64_t count : rows) {
    LOCKSTEP_ASSIGN_OR_RETURN(Products products,
                              Products::Create(bench.backend, bench.pool, *stack, count));
    LOCKSTEP_RETURN_IF_ERROR(products.Pass().status());  // the warm-up
    std::vector<double> seconds, shares;
    double read_best = 0;
    for (int64_t pass = 0; pass < bench.options.repeat; ++pass) {
      if (Interrupted()) return InterruptedError();
      // Threads read the host's memory, which says nothing of a device's.
      const double read_rate =
          on_device ? 0 : static_cast<double>(read.bytes()) / read.FastestPass(bench.pool);
      LOCKSTEP_ASSIGN_OR_RETURN(seconds.emplace_back(), products.Pass());
      shares.push_back(PartOf(static_cast<double>(bytes) / seconds.back(), read_rate));
      read_best = std::max(read_best, read_rate * 1e-9);
    }
    const double best = *std::min_element(seconds.begin(), seconds.end());
    const double gops =
        2.0 * static_cast<double>(count * stack->count() * kOutputs * kInputs) / best * 1e-9;
    const double rate = static_cast<double>(bytes) / best * 1e-9;
    bench.results.push_back({{"format", format.name},
                             {"rows", count},
                             {"gb_per_s", rate},
                             {"read_gb_per_s", read_best},
                             {"share_of_bandwidth", PartOf(rate, read_best)},
                             {"median_share_of_neighbours", Median(shares)},
                             {"gop_per_s", gops},
                             {"share_of_peak", PartOf(gops, bench.peak.gop_per_s)},
                             {"pack_gb_per_s", static_cast<double>(bytes) / pack_seconds * 1e-9}});
    if (!bench.options.json) PrintRow(bench.results.back());
  }
  return OkStatus();
}

}  // namespace

Status BenchKernels(const Options& options) {
  LOCKSTEP_ASSIGN_OR_RETURN(const auto formats, ChosenFormats(options.formats));
  LOCKSTEP_ASSIGN_OR_RETURN(const auto rows, ParseCounts(options.rows, "--rows", kMostRows));
  LOCKSTEP_ASSIGN_OR_RETURN(const kernels::DeviceName device,
                            kernels::DeviceOfRank(options.device, 0, 1, "--device"));
  LOCKSTEP_ASSIGN_OR_RETURN(const auto backend,
                            kernels::MakeBackendOn(device, options.kernels,
                                                   options.exact ? kernels::Precision::kExact
                                                                 : kernels::Precision::kFast));
  const std::vector<int> cpus = os::AllowedCpus();
  const int threads =
      options.threads > 0 ? static_cast<int>(options.threads) : static_cast<int>(cpus.size());
  ThreadPool pool(threads, cpus);
  const InterruptScope interrupts;
  Bench bench{options, *backend, pool, kernels::MeasurePeak(backend->product_loop(), pool)};
  const double barrier_ns = kernels::MeasureBarrierNs(pool);
  if (!options.json) {
    std::printf(
        "%s, %d threads; peak %.0f Gop/s (%s in registers); an empty parallel loop %.0f ns\n",
        backend->name().c_str(), threads, bench.peak.gop_per_s, bench.peak.instruction.c_str(),
        barrier_ns);
    std::printf("format       rows  weights, the best of %d passes, and share of reading\n",
                static_cast<int>(options.repeat));
  }
  for (const NamedFormat& format : formats)
    LOCKSTEP_RETURN_IF_ERROR(MeasureFormat(bench, format, rows));
  if (!options.json) return OkStatus();
  const Json line = {{"benchmark", "kernels"},
                     {"kernels", backend->name()},
                     {"threads", threads},
                     {"matrix", {{"outputs", kOutputs}, {"inputs", kInputs}}},
                     {"repeat", options.repeat},
                     {"read_ways", ReadWays()},
                     {"peak_gop_per_s", bench.peak.gop_per_s},
                     {"peak_instruction", bench.peak.instruction},
                     {"barrier_ns", barrier_ns},
                     {"results", bench.results}};
  std::printf("%s\n", line.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
  return OkStatus();
}

}  // namespace lockstep
