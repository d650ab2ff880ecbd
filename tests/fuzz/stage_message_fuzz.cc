// Whatever arrives from another stage instead of a header or an outcome is refused, or is what was
// asked for.
#include <cstddef>
#include <cstdint>
#include <span>

#include "runtime/base/check.h"
#include "runtime/engine/stage_message.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lockstep;
  const auto bytes = std::as_bytes(std::span<const uint8_t>(data, size));
  const StageHeader due = {StageKind::kRows, 7, 2, 3, 96};
  const StatusOr<StageHeader> header = DecodeStageHeader(bytes);
  if (header.ok() && CheckStageHeader(*header, due, "rank 1").ok())
    LOCKSTEP_CHECK(header->bytes == due.bytes);
  const OutcomeShape shape = {
      .slots = {3, 0}, .vocab_size = 100, .raw_rows = 1, .hidden_ranks = 2, .hidden_size = 4};
  const StatusOr<StepOutcome> outcome = DecodeOutcome(bytes, shape);
  if (!outcome.ok()) return 0;
  LOCKSTEP_CHECK(size <= shape.most_bytes());
  LOCKSTEP_CHECK(outcome->tokens.size() == shape.slots.size());
  LOCKSTEP_CHECK(outcome->raw_logits.size() == 100 && outcome->raw_hidden.size() == 2);
  return 0;
}
