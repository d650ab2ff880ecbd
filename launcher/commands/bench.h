// What the benchmarks of `lockstep bench` share, and `lockstep doctor` with them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "launcher/session.h"
#include "runtime/base/options.h"
#include "runtime/base/status.h"
#include "runtime/kernels/roofline.h"

namespace lockstep {

Status BenchKernels(const Options& options);
Status BenchDecode(const Options& options);
Status BenchPrefill(const Options& options);
Status BenchCollectives(const Options& options);
Status BenchSteps(const Options& options);
Status BenchModes(const Options& options);
Status BenchServe(const Options& options);

// "128,512": whole numbers in lowest .. highest; `flag` for errors.
StatusOr<std::vector<int64_t>> ParseCounts(std::string_view text, const char* flag, int64_t highest,
                                           int64_t lowest = 1);
// --added-latency-us.
StatusOr<std::vector<int64_t>> ParseLatencies(const Options& options);
std::vector<std::string> SplitAtCommas(std::string_view text);
// --transports: none for "auto", else those named, all of them among `allowed`.
StatusOr<std::vector<std::string>> ParseTransports(const Options& options,
                                                   const std::vector<const char*>& allowed);

// part / whole; 0 where the whole is not known.
inline double PartOf(double part, double whole) { return whole > 0 ? part / whole : 0; }

// Collective. GB/s that the threads of all ranks read together: per host, all of its ranks' bytes
// over the slowest one's time, and hosts added up. The best of some passes that all ranks begin at
// the same time. 0 where a rank computes on a device: its memory is not what threads read.
StatusOr<double> MeasureRead(Session& session);
// Collective. Of all ranks at the same time, added up; 0 where a rank computes on a device.
StatusOr<kernels::PeakArithmetic> MeasurePeak(Session& session);

// Collective: what every rank says, in rank order. At most kLongestWord bytes each.
inline constexpr size_t kLongestWord = 64 << 10;
StatusOr<std::vector<std::string>> GatherWords(Group& group, const std::string& mine);

}  // namespace lockstep
