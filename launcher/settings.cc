#include "launcher/settings.h"

#include "runtime/base/version.h"
#include "runtime/weights/partition.h"

namespace lockstep {
namespace {

std::string ModeOf(const Options& options, const World& world) {
  if (world.stages == 1) return "tensor";
  return absl::StrFormat("pipeline of %d stages over %s", world.stages, options.stage_link);
}

// In a pipeline without --shares every rank takes part in sharing by memory, which is not the same
// as the equal shares of tensor mode, nor as shares that are given equal.
std::string SharesOf(const World& world) {
  if (world.stages == 1) return FormatShares(world.shares);
  return world.stage_shares.empty() ? "by memory" : FormatShares(world.stage_shares);
}

std::string OrDefault(int64_t value) { return value == 0 ? "default" : std::to_string(value); }

}  // namespace

Status CheckTogether(const Options& options) {
  if (options.sum_order != "rank" && options.wire != "f32") {
    return UsageError(
        "--sum-order any passes on sums, which are float32 on every wire, so that --wire %s saves "
        "nothing there; leave one of them out",
        options.wire);
  }
  if (options.mixed_kernels && options.overlap_rows > 0) {
    return UsageError(
        "--overlap-rows %d: with --mixed-kernels rank 0's choices travel between the sums, so that "
        "no step runs in halves; leave one of them out",
        options.overlap_rows);
  }
  return OkStatus();
}

std::vector<Setting> SettingsOf(const Options& options, const World& world,
                                const std::string& kernels, kernels::Precision precision) {
  const std::string same = "start every rank with the same ";
  return {
      {"source version", SourceVersion(), "install the same build of lockstep on every node"},
      {"mode", ModeOf(options, world), same + "--mode, --stages and --stage-link"},
      {"shares", SharesOf(world), same + "--shares or YAML"},
      {"mixed-kernels", options.mixed_kernels ? "yes" : "no", same + "--mixed-kernels"},
      {"kernels", options.mixed_kernels ? "each rank's own" : kernels,
       "instruction sets and devices differ in their last bits; give every rank the same --exact, "
       "and --mixed-kernels if processors or devices differ"},
      {"exact", precision == kernels::Precision::kExact ? "yes" : "no", same + "--exact"},
      {"kv-cache-dtype", options.kv_cache_dtype, same + "--kv-cache-dtype"},
      {"max-model-len", OrDefault(options.max_model_len), same + "--max-model-len"},
      {"max-num-seqs", std::to_string(options.max_num_seqs), same + "--max-num-seqs"},
      {"prefill-chunk", std::to_string(options.prefill_chunk), same + "--prefill-chunk"},
      {"draft", options.draft ? "yes" : "no", same + "--draft"},
      {"wire", options.wire, same + "--wire"},
      {"sum-order", options.sum_order, same + "--sum-order"},
      {"verify-exchanges", options.verify_exchanges ? "yes" : "no", same + "--verify-exchanges"},
      {"added-latency-us", options.added_latency_us, same + "--added-latency-us"},
      {"record", options.record ? "yes" : "no", same + "--record"},
  };
}

}  // namespace lockstep
