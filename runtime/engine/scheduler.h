// Which rows the next step computes. A pure state machine: requests and sampled tokens in, plans
// out; no clock, no thread, no model. The same calls give the same plans. Its contract, with why
// and how it is tested, is docs/scheduler.md.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/cache/block_pool.h"
#include "runtime/engine/fair_queue.h"
#include "runtime/engine/plan.h"

namespace lockstep {

struct SchedulerLimits {
  int64_t max_sequences = 0;  // running at once; lowered to max_rows and max_outputs
  int64_t max_rows = 0;       // rows in one step
  int64_t max_outputs = 0;    // sampled rows in one step
  int64_t prefill_rows = 0;   // prompt rows in one step
  // The same where no sequence decodes, so that nobody waits for a long step; 0: no others.
  int64_t prefill_rows_alone = 0;
  int64_t max_model_len = 0;  // prompt and answer together
  int64_t kv_blocks = 0;
  bool prefix_cache = true;  // sequences share the blocks of their common beginnings
  // Prompt tokens that one plan may carry to the ranks (32 MiB), half of what a plan may weigh.
  // What came with a request beside its prompt counts too.
  int64_t plan_tokens = int64_t{8} << 20;
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerLimits& limits);

  // A RequestError if the request could never run under the limits: the prompt leaves no room for
  // an answer, is larger than a plan may be, or the KV pool is too small for it.
  Status Admissible(int64_t prompt_tokens, int64_t max_tokens) const;

  // The request must be admissible and its id new.
  void Add(ScheduledRequest request);
  // The request leaves, whether it waits or runs: it has no rows in any later plan. Unknown ids are
  // ignored.
  void Remove(uint64_t id);

  // Fills `plan` with the next step and returns true; false if there is nothing to compute. The
  // plan counts as executed once it was given out. Beside sequences that decode, prompts get at
  // most `prompt_rows`.
  bool Next(StepPlan* plan, int64_t prompt_rows = std::numeric_limits<int64_t>::max());
  // A step without rows: only what has ended since the last plan.
  void NextEmpty(StepPlan* plan);
  // The same as a save plan of what the pool holds and nobody else does; its save is 0.
  void NextSave(StepPlan* plan);
  // Before the first request: what the pool holds already.
  void Restore(std::span<const ChainedBlock> blocks) { pool_.Restore(blocks); }
  // The sequence in `slot` got its next token.
  void Append(int32_t slot, int32_t token);

  // The request in a slot of the last plan; nothing if it was removed meanwhile.
  std::optional<uint64_t> RequestAt(int32_t slot) const;

  int64_t waiting() const { return queue_.size(); }
  int64_t running() const { return static_cast<int64_t>(order_.size()); }
  int64_t preemptions() const { return preemptions_; }  // so far
  const BlockPool& pool() const { return pool_; }
  const SchedulerLimits& limits() const { return limits_; }

 private:
  struct Running {
    ScheduledRequest request;  // its tokens are those of the sequence so far
    int64_t computed = 0;      // of those, with KV
    int64_t promised = 0;      // reserved blocks not yet taken
    std::vector<int32_t> blocks;
    // The first blocks as the pool has them published, held by this sequence; where another one
    // published the same tokens before, `blocks` has this one's own.
    std::vector<int32_t> published;

    int64_t left() const { return static_cast<int64_t>(request.tokens.size()) - computed; }
  };
  int64_t BlocksFor(int64_t prompt_tokens, int64_t max_tokens) const;
  int64_t MostShared(int64_t length) const;
  void Admit(StepPlan* plan);
  bool Enter(StepPlan* plan);
  bool EnterInsteadOfOthers(StepPlan* plan);
  bool WouldFit(const ScheduledRequest& request, const std::vector<int32_t>& victims) const;
  void Preempt(int32_t slot, StepPlan* plan);
  int32_t FreeSlot() const;
  void Publish(Running& running);
  void Give(Running& running);
  void AddPromptRows(int64_t budget, StepPlan* plan);
  void AddRows(int32_t slot, int64_t count, StepPlan* plan);

  SchedulerLimits limits_;
  BlockPool pool_;
  FairQueue queue_;
  std::vector<std::optional<Running>> slots_;
  std::vector<int32_t> order_;     // running slots in order of admission
  std::vector<int32_t> released_;  // ended since the last plan
  std::unordered_map<uint64_t, int32_t> slot_of_;
  uint64_t step_ = 0;
  int64_t preemptions_ = 0;
};

}  // namespace lockstep
