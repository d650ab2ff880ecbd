// What `lockstep bench decode` and `prefill` print on rank 0.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/base/options.h"
#include "runtime/kernels/roofline.h"

namespace lockstep {

struct BenchReport {
  std::string benchmark;  // decode, prefill, steps
  int ranks = 1;
  int stages = 1;   // of a pipeline; 1: tensor mode
  int threads = 1;  // of rank 0
  int64_t chunk = 0;
  std::string collective, kernels, warm_up;
  double read_before_gb_per_s = 0, read_after_gb_per_s = 0;
  kernels::PeakArithmetic peak;
  // How far logits may be from those of another division of the model, in their standard
  // deviations (ProbeTolerance::near).
  double logit_error = 0;
  nlohmann::ordered_json memory;                                   // of every rank
  nlohmann::ordered_json tests = nlohmann::ordered_json::array();  // with every rank's times
};

// {"median", "min", "max", "samples"}.
nlohmann::ordered_json RatesOf(const std::vector<double>& rates);

// How the read test reads (ReadTest::kWays): {{"streams": ..., "ahead_bytes": ...}, ...}.
nlohmann::ordered_json ReadWays();

// The figures of all tests: {"tokens_per_second", "bytes_per_token", ...}. Rates per token are sums
// over ranks, times of ops those of rank 0; of `steps` they are left out. "us_per_token" has every
// rank's time: in ops; in exchanges; waiting in them (for the parts of others, and until the own
// ones have left) or, in a pipeline, for rows; and the rest.
nlohmann::ordered_json BenchToJson(const BenchReport& report, const Options& options);
// A table, or with --json one line.
void PrintBenchReport(const BenchReport& report, const Options& options);

}  // namespace lockstep
