// The probe prompt of files of ranks (runtime/model/probe.h): recorded when they are made, compared
// before anything is answered from them.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "launcher/session.h"
#include "runtime/base/status.h"
#include "runtime/model/probe.h"

namespace lockstep {

// A probe.json has at most so many.
inline constexpr uint64_t kMostProbeBytes = uint64_t{1} << 20;

// What probe.json in `directory` says of the set of files with these settings; nothing if there is
// none. Collective: rank 0 reads it for all.
StatusOr<std::optional<ProbeRecord>> ReadProbe(Session& session);

ProbeArithmetic ArithmeticOf(Session& session);

// The command that records the probe of the files of ranks in `directory`, where all of them are on
// one machine. One share per rank.
std::string RecordCommand(std::string_view directory, const std::vector<double>& shares);

// A line of warning if 8-bit activations move the logits so far that no start without --exact
// would pass the record.
void WarnOfFastActivations(const ProbeRecord& record);

// Computes the probe and compares it (collective). A directory without a record is a line of
// warning on rank 0.
Status CheckProbeAtStart(Session& session);

// Makes the layers' sums travel as `wire` from now on (collective). Computes the probe before and
// after, and rank 0 logs how far the logits moved.
Status MeasureWire(Session& session, WireFormat wire);

// What the probe of a whole checkpoint needs beside it.
struct ProbeQuestion {
  std::map<std::string, WeightFormat> formats;  // of tensors that the files hold otherwise
  std::string kernels = "auto";
  int threads = 1;
  uint64_t available_bytes = 0;  // 0: not known, everything fits
  uint64_t settings = 0;         // of the files that are made of it
  // Called now and then with bytes of the source, which is read once; may be empty.
  std::function<void(const LoadProgress&)> progress;
  // Asked between the layers; true ends the work with InterruptedError. May be empty.
  std::function<bool()> stop;
};

// Computes the probe of `source` in this process alone, as one rank, without looking at the files
// that were made of it: in full precision, and how far 8-bit activations are from it. A layer at a
// time is in memory; nothing, and why, in *too_large, if there is less.
StatusOr<std::optional<ProbeRecord>> ComputeSourceProbe(const Checkpoint& source,
                                                        const ProbeQuestion& question,
                                                        std::string* too_large);

}  // namespace lockstep
