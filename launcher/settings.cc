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

std::vector<Setting> SettingsOf(const Options& options, const World& world,
                                const std::string& kernels) {
  const std::string same = "start every rank with the same ";
  return {
      {"source version", SourceVersion(), "install the same build of lockstep on every node"},
      {"mode", ModeOf(options, world), same + "--mode, --stages and --stage-link"},
      {"shares", SharesOf(world), same + "--shares or YAML"},
      {"kernels", kernels,
       "instruction sets differ in their last bits; give every rank the same --exact, and "
       "--kernels "
       "ref if the processors differ"},
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
