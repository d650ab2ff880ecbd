// Who computes a plan: tensor-parallel over all ranks (tensor_parallel.h), a pipeline of stages
// (pipeline_executor.h), or what stands in for them in simulations and tests.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/decode/candidates.h"
#include "runtime/engine/plan.h"

namespace lockstep {

// What rank 0 learns from a step.
struct StepOutcome {
  // The sampled rows, in the plan's span order.
  std::vector<int32_t> slots;
  std::vector<SampledToken> tokens;  // beside slots
  std::vector<int32_t> too_slow;     // of these slots, whose constraint keeps the others waiting
  // The raw rows (SpanOutput::kRaw and above), in the plan's order.
  int64_t raw_rows = 0;
  std::vector<float> raw_logits;               // [raw_rows, vocab_size]
  std::vector<std::vector<float>> raw_hidden;  // per rank [raw_rows, hidden_size]; from kRawHidden
  std::vector<float> draft_logits;             // [drafted rows, vocab_size]; kRawDraft only

  // Keeps the memory for the next step.
  void Clear() {
    slots.clear();
    tokens.clear();
    too_slow.clear();
    raw_rows = 0;
    raw_logits.clear();
    raw_hidden.clear();
    draft_logits.clear();
  }
};

class Executor {
 public:
  virtual ~Executor() = default;
  // Computes one step on all ranks, or keeps what a save plan says; then `outcome` is not touched.
  // After an error the executor is of no more use.
  virtual Status Execute(const StepPlan& plan, StepOutcome* outcome) = 0;
  // Whether it takes save plans.
  virtual bool keeps_cache() const { return false; }
  // What the KV blocks 0, 1, ... hold before the first plan, as BlockPool::Restore takes it.
  virtual std::span<const ChainedBlock> restored() const { return {}; }
  // Sends the stop plan: every rank ends its loop. Returns each rank's digest over all steps.
  virtual StatusOr<std::vector<uint64_t>> Stop(uint64_t step, ErrorKind reason) = 0;
};

}  // namespace lockstep
