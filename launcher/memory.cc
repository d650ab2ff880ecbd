#include "launcher/memory.h"

#include <algorithm>

#include "launcher/progress.h"
#include "runtime/base/largest.h"
#include "runtime/base/os.h"
#include "runtime/kernels/roofline.h"

namespace lockstep {
namespace {

// The operating system, the page cache of the load and the allocator's slack live beside the plan.
constexpr double kReservedPart = 0.06;
constexpr uint64_t kReservedBytes = uint64_t{256} << 20;

// What a step computes in and exchanges through.
uint64_t StepBytes(const MemoryPlan& plan) {
  return plan.scratch_bytes + plan.work_bytes + plan.exchange_bytes;
}

MemoryPlan PlanWith(const MemoryQuestion& question, int64_t kv_blocks, int64_t max_model_len) {
  ModelLimits limits = question.limits;
  limits.kv_blocks = kv_blocks;
  limits.max_model_len = max_model_len;
  return PlanMemory(question.config, question.slice, limits, question.rank, question.threads);
}

// Of this node's or device's memory, this rank's part without what is kept back.
uint64_t PartOfRank(uint64_t available, int ranks) {
  const uint64_t reserved = std::max(
      kReservedBytes, static_cast<uint64_t>(static_cast<double>(available) * kReservedPart));
  if (available == 0) return 0;
  const uint64_t usable = available > reserved ? available - reserved : available / 2;
  return std::max<uint64_t>(1, usable / static_cast<uint64_t>(std::max(1, ranks)));
}

uint64_t BytesOnDevice(const MemoryPlan& plan) {
  return plan.weight_bytes + plan.kv_bytes + plan.scratch_bytes + plan.work_bytes;
}

bool Fits(const MemoryQuestion& question, const MemoryPlan& plan) {
  if (question.device_bytes == 0) return plan.total() <= question.available_bytes;
  return BytesOnDevice(plan) <= question.device_bytes;
}

// What a rank with a device needs of the host, whatever its cache.
Status CheckHostBeside(const MemoryQuestion& question) {
  const uint64_t bytes = question.slice.staging_bytes + question.limits.exchange_bytes;
  if (question.device_bytes == 0 || question.available_bytes == 0 ||
      bytes <= question.available_bytes) {
    return OkStatus();
  }
  return ModelError(
      "beside its device this rank needs %s of the machine's own memory, to read weights (%s) and "
      "to exchange (%s), and may use %s; end what else runs there, or use more ranks",
      FormatBytes(bytes), FormatBytes(question.slice.staging_bytes),
      FormatBytes(question.limits.exchange_bytes), FormatBytes(question.available_bytes));
}

}  // namespace

StatusOr<int64_t> FitKvBlocks(const MemoryQuestion& question) {
  const int64_t max_model_len = question.limits.max_model_len;
  LOCKSTEP_RETURN_IF_ERROR(CheckHostBeside(question));
  if (question.available_bytes == 0 && question.device_bytes == 0) return question.limits.kv_blocks;
  const auto fits = [&](int64_t blocks, int64_t length) {
    return Fits(question, PlanWith(question, blocks, length));
  };
  const int64_t least = std::min(BlocksOf(max_model_len), question.limits.kv_blocks);
  const int64_t blocks = LargestThatFits(least, question.limits.kv_blocks,
                                         [&](int64_t count) { return fits(count, max_model_len); });
  if (blocks >= least) return blocks;

  const MemoryPlan plan = PlanWith(question, least, max_model_len);
  const int64_t length = LargestThatFits(1, max_model_len, [&](int64_t tokens) {
    return fits(std::min(least, BlocksOf(tokens)), tokens);
  });
  const bool device = question.device_bytes > 0;
  const std::string needs = absl::StrFormat(
      "this rank needs %s%s (weights %s, KV cache of one sequence of %d tokens %s, scratch %s) and "
      "may use %s",
      FormatBytes(device ? BytesOnDevice(plan) : plan.total()), device ? " on its device" : "",
      FormatBytes(plan.weight_bytes), max_model_len, FormatBytes(plan.kv_bytes),
      FormatBytes(StepBytes(plan)),
      FormatBytes(device ? question.device_bytes : question.available_bytes));
  if (length > 0) return ModelError("%s; --max-model-len %d would fit", needs, length);
  return ModelError("%s; its weights need more ranks, or a smaller share for this one in --shares",
                    needs);
}

std::string DescribePlan(const MemoryPlan& plan, const ModelLimits& limits) {
  const int64_t per_sequence = std::max<int64_t>(1, BlocksOf(limits.max_model_len));
  return absl::StrFormat(
      "weights %s, KV cache %s (%d tokens, %.1f times the longest context of %d), scratch %s: %s",
      FormatBytes(plan.weight_bytes), FormatBytes(plan.kv_bytes), limits.kv_blocks * kBlockTokens,
      static_cast<double>(limits.kv_blocks) / static_cast<double>(per_sequence),
      limits.max_model_len, FormatBytes(StepBytes(plan)), FormatBytes(plan.total()));
}

uint64_t MemoryRate(ThreadPool& pool) {
  constexpr uint64_t kBytesPerThread = uint64_t{64} << 20;
  constexpr int kRounds = 3;
  StatusOr<kernels::ReadTest> test = kernels::ReadTest::Create(pool, kBytesPerThread);
  if (!test.ok()) return 0;
  double seconds = test->FastestPass(pool);
  for (int round = 1; round < kRounds; ++round)
    seconds = std::min(seconds, test->FastestPass(pool));
  return static_cast<uint64_t>(static_cast<double>(test->bytes()) / std::max(seconds, 1e-9));
}

uint64_t MemoryForRank(int ranks_on_this_host) {
  return PartOfRank(os::MemoryBytesAvailable(), ranks_on_this_host);
}

RankMemory MemoryForRank(const std::optional<kernels::DeviceMemory>& device, int ranks_on_this_host,
                         int ranks_on_device) {
  RankMemory memory;
  memory.host_bytes = MemoryForRank(ranks_on_this_host);
  if (!device.has_value()) return memory;
  // A device that tells nothing has no room, not any.
  const uint64_t bytes = std::max<uint64_t>(1, PartOfRank(device->free_bytes, ranks_on_device));
  // Where there is one memory the system's figure counts: the driver's takes the page cache, which
  // gives way, for used.
  if (!device->of_host) {
    memory.device_bytes = bytes;
  } else if (memory.host_bytes == 0) {
    memory.host_bytes = bytes;
  }
  return memory;
}

}  // namespace lockstep
