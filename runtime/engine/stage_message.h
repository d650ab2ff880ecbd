// What travels between the stages of a pipeline, whatever carries it (stage_link.h). Every byte
// that another rank sent is checked here before anything is done with it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/engine/executor.h"

namespace lockstep {

enum class StageKind : uint32_t {
  kRows = 1,    // [rows, hidden_size] float32, from one stage to the next
  kResult = 2,  // what the last stage found, to rank 0: the whole step's outcome
};

// What a message is. Both ends know it before it comes.
struct StageHeader {
  StageKind kind = StageKind::kRows;
  uint64_t step = 0;
  uint32_t part = 0;    // of the step: which micro-batch
  uint32_t rows = 0;    // of that part; of a result, of the step
  uint64_t bytes = 0;   // that follow; of a result that is expected, at most
  uint64_t digest = 0;  // Digest64 of them, where exchanges are verified; else 0
};

// As they travel outside gRPC.
inline constexpr size_t kStageHeaderBytes = 40;
std::array<std::byte, kStageHeaderBytes> EncodeStageHeader(const StageHeader& header);
StatusOr<StageHeader> DecodeStageHeader(std::span<const std::byte> bytes);

// OK if `got` is what `expected` says, whose digest nobody knows. `name` is the sender's.
Status CheckStageHeader(const StageHeader& got, const StageHeader& expected,
                        const std::string& name);

// The outcome of a step as the last stage sends it to rank 0.
std::vector<std::byte> EncodeOutcome(const StepOutcome& outcome);
// What rank 0 knows of it beforehand.
struct OutcomeShape {
  std::vector<int32_t> slots;  // that get a token, in order
  int64_t vocab_size = 0;
  int64_t raw_rows = 0;
  int64_t hidden_ranks = 0;  // that send hidden states of the raw rows; 0: nobody
  int64_t hidden_size = 0;

  uint64_t most_bytes() const;
};
StatusOr<StepOutcome> DecodeOutcome(std::span<const std::byte> bytes, const OutcomeShape& shape);

}  // namespace lockstep
