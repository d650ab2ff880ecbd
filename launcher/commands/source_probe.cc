#include "launcher/commands/source_probe.h"

#include <algorithm>

#include "launcher/memory.h"
#include "launcher/process.h"
#include "launcher/progress.h"
#include "runtime/base/clock.h"
#include "runtime/base/os.h"

namespace lockstep {

StatusOr<std::optional<ProbeRecord>> ProbeSource(const Checkpoint& source, ProbeQuestion question,
                                                 const Options& options, std::string* too_large) {
  question.kernels = options.kernels;
  // Of those that wait for a network, as many as can compute.
  question.threads = std::min(question.threads, static_cast<int>(os::AllowedCpus().size()));
  question.available_bytes = MemoryForRank(1);
  question.stop = Interrupted;
  ProgressReport progress("probe prompt");
  if (options.log_level == "info" || options.log_level == "debug") {
    question.progress = [&progress](const LoadProgress& done) {
      progress.Update(done.bytes_done, done.bytes_total, NowNs());
    };
  }
  StatusOr<std::optional<ProbeRecord>> computed = ComputeSourceProbe(source, question, too_large);
  progress.Finish();
  if (computed.ok() && Interrupted()) return InterruptedError();
  return computed;
}

}  // namespace lockstep
