// The plan of one step: the one small message with which rank 0 tells all ranks what to compute.
// Everything that every rank can know by itself stays out: prompts travel once, sampled tokens
// never where every rank samples them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/cache/kept_file.h"
#include "runtime/decode/sampler.h"
#include "runtime/decode/sampling_params.h"

namespace lockstep {

enum class PlanKind : uint8_t {
  kStep = 1,  // compute the rows (there may be none: all ranks then only prove that they are alive
              // and agree)
  kStop = 2,  // the last plan: gather the digests and end
  kSave = 3,  // a step without rows, after which every rank writes `kept` to its disk
};

// What is wanted of a span of rows.
enum class SpanOutput : uint8_t {
  kNone = 0,       // only KV: a prompt chunk that is not the last
  kSample = 1,     // the last row's logits choose the next token
  kRaw = 2,        // the logits of every row go to rank 0 as they are
  kRawHidden = 3,  // the same, and every rank's copy of the final hidden state
  kRawDraft = 4,   // the same, and the draft layer's logits of the rows whose next token is known
};

// A sequence enters at `slot`, which is free.
struct NewSequence {
  int32_t slot = 0;
  std::vector<int32_t> tokens;  // the prompt; and, after a preemption, the answer so far
  int32_t sampled = 0;          // of these, the answer's
  TokenSet token_set;           // what may be sampled
  SamplingParams params;
  // KV blocks that hold the prompt's first tokens already: its first rows come behind them. Others
  // may hold them too, so they are only read.
  std::vector<int32_t> shared;
  std::string grammar;  // what the answer must follow (token_constraint.h); empty: nothing
};

// KV blocks that a sequence gets now, appended to its table.
struct BlockGrowth {
  int32_t slot = 0;
  std::vector<int32_t> blocks;
};

// Rows of one sequence: its tokens at positions [begin, begin + count), which follow those computed
// before.
struct RowSpan {
  int32_t slot = 0;
  int32_t begin = 0;
  int32_t count = 0;
  SpanOutput output = SpanOutput::kNone;
};

// Which blocks go to the disks.
struct KeptBlocks {
  uint64_t save = 0;                 // KeptHeader::save
  std::vector<ChainedBlock> chains;  // at most kMostKeptBlocks, as BlockPool::Idle gives them
  std::vector<int32_t> blocks;       // their ids, beside chains
};

struct StepPlan {
  PlanKind kind = PlanKind::kStep;
  uint64_t step = 0;                // counts plans from 1
  ErrorKind reason = ErrorKind{0};  // kStop: why, if not simply done
  // In a pipeline, whose last stage alone samples: the tokens of the step before, in the order of
  // its spans. The executor adds them; whoever makes a plan leaves this empty.
  std::vector<int32_t> sampled;
  std::vector<int32_t> released;  // slots whose sequences ended; before `started`
  std::vector<NewSequence> started;
  std::vector<BlockGrowth> growth;
  std::vector<RowSpan> spans;  // at most one per slot
  KeptBlocks kept;             // kSave alone

  int64_t rows() const;
  // Those of prompts: all but single rows that give a token.
  int64_t prompt_rows() const;
  // Every row gives a token, so that the step's time is that of one token.
  bool IsDecode() const;
};

void EncodePlan(const StepPlan& plan, std::vector<std::byte>* message);
// Checks the form of every field (lengths, known kinds, parameters in range); what depends on the
// state - slots, blocks, positions - is SequenceTable::Apply's to check.
StatusOr<StepPlan> DecodePlan(std::span<const std::byte> message);

}  // namespace lockstep
