// Whatever arrives instead of a step plan is refused or applied; it never harms the receiver.
#include <cstddef>
#include <cstdint>
#include <span>

#include "runtime/engine/plan.h"
#include "runtime/engine/sequence_table.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto plan = lockstep::DecodePlan(std::as_bytes(std::span<const uint8_t>(data, size)));
  if (!plan.ok()) return 0;
  lockstep::SequenceTable table({64, 64, 1024, 64}, 1000, {100, 500});
  (void)table.Apply(*plan);
  (void)table.Apply(*plan);
  (void)table.CheckKept(plan->kept);
  return 0;
}
