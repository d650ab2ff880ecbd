#include "runtime/kernels/backend.h"

namespace lockstep::kernels {

StatusOr<std::unique_ptr<Backend>> MakeBackend(std::string_view name, Precision precision) {
  if (name == "ref") return MakeRefBackend();
  if (name == "auto" || name == "cpu") return MakeCpuBackend("", precision);
  if (name.substr(0, 4) == "cpu/") return MakeCpuBackend(name.substr(4), precision);
  return UsageError("--kernels: '%s' is not one of auto, ref, cpu", std::string(name));
}

StatusOr<std::unique_ptr<Backend>> MakeBackendOn(const DeviceName& device, std::string_view name,
                                                 Precision precision) {
  if (!device.is_cuda) return MakeBackend(name, precision);
  if (name != "auto") {
    return UsageError(
        "--kernels %s are the processor's, and this rank computes on %s; leave one out",
        std::string(name), device.Text());
  }
  return MakeCudaBackend(device.ordinal, precision);
}

void GroupRowsOnHost(const RouterArgs& args, const ExpertGroups& groups) {
  // A counting sort: first where each expert's run begins, then every choice into its run.
  int32_t next[kMaxExperts + 1] = {};
  const int64_t assignments = args.rows * args.top_k;
  for (int64_t i = 0; i < assignments; ++i) ++next[args.chosen[i] + 1];
  int32_t count = 0;
  for (int32_t expert = 0; expert < args.experts; ++expert) {
    const int32_t begin = next[expert];
    next[expert + 1] += begin;
    if (next[expert + 1] > begin)
      groups.groups[count++] = RowGroup{expert, begin, next[expert + 1]};
  }
  for (int64_t i = 0; i < assignments; ++i) {
    const int32_t assignment = next[args.chosen[i]]++;
    groups.row_of[assignment] = static_cast<int32_t>(i / args.top_k);
    groups.assignment_of[i] = assignment;
  }
  *groups.group_count = count;
}

}  // namespace lockstep::kernels
