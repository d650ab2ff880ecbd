#include "runtime/engine/scheduler.h"

#include <algorithm>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/model/model.h"

namespace lockstep {
namespace {

// 4-byte numbers that a plan carries for this request.
int64_t PlanTokens(const ScheduledRequest& request) {
  return static_cast<int64_t>(request.tokens.size() + request.token_set.unknown.size() +
                              3 * request.params.logit_bias.size());
}

}  // namespace

Scheduler::Scheduler(const SchedulerLimits& limits) : limits_(limits), pool_(limits.kv_blocks) {
  LOCKSTEP_CHECK(limits.max_rows >= 1 && limits.max_outputs >= 1 && limits.max_sequences >= 1);
  LOCKSTEP_CHECK(limits.prefill_rows >= 1);
  // With at most one row per sequence left over for decodes, every sequence moves in every step.
  limits_.max_sequences = std::min({limits.max_sequences, limits.max_rows, limits.max_outputs});
  slots_.resize(limits_.max_sequences);
}

// The last sampled token needs no KV: nothing follows it.
int64_t Scheduler::BlocksFor(int64_t prompt_tokens, int64_t max_tokens) const {
  return (prompt_tokens + max_tokens - 1 + kBlockTokens - 1) / kBlockTokens;
}

Status Scheduler::Admissible(int64_t prompt_tokens, int64_t max_tokens) const {
  if (prompt_tokens < 1) return RequestError("the prompt is empty");
  if (prompt_tokens >= limits_.max_model_len) {
    return RequestError(
        "the prompt has %d tokens, but the context holds %d including the answer (context length "
        "exceeded); shorten it or raise --max-model-len",
        prompt_tokens, limits_.max_model_len);
  }
  if (prompt_tokens > limits_.plan_tokens) {
    return RequestError("the prompt has %d tokens, but one request may have at most %d",
                        prompt_tokens, limits_.plan_tokens);
  }
  if (max_tokens < 1 || max_tokens > limits_.max_model_len - prompt_tokens) {
    return RequestError(
        "max_tokens is %d, but with a prompt of %d tokens the context of %d leaves room for 1 .. "
        "%d",
        max_tokens, prompt_tokens, limits_.max_model_len, limits_.max_model_len - prompt_tokens);
  }
  if (BlocksFor(prompt_tokens, max_tokens) > pool_.total()) {
    return RequestError(
        "prompt and answer of %d + %d tokens need %d KV blocks, but there are %d; lower max_tokens",
        prompt_tokens, max_tokens, BlocksFor(prompt_tokens, max_tokens), pool_.total());
  }
  return OkStatus();
}

void Scheduler::Add(ScheduledRequest request) {
  LOCKSTEP_CHECK(Admissible(static_cast<int64_t>(request.tokens.size()), request.max_tokens).ok());
  waiting_.push_back(std::move(request));
}

void Scheduler::Remove(uint64_t id) {
  const auto running = slot_of_.find(id);
  if (running == slot_of_.end()) {
    std::erase_if(waiting_, [id](const ScheduledRequest& request) { return request.id == id; });
    return;
  }
  const int32_t slot = running->second;
  slot_of_.erase(running);
  std::erase(order_, slot);
  released_.push_back(slot);
}

std::optional<uint64_t> Scheduler::RequestAt(int32_t slot) const {
  if (slot < 0 || slot >= static_cast<int64_t>(slots_.size()) || !slots_[slot]) return std::nullopt;
  const uint64_t id = slots_[slot]->id;
  return slot_of_.contains(id) ? std::optional<uint64_t>(id) : std::nullopt;
}

void Scheduler::Append(int32_t slot) {
  LOCKSTEP_CHECK(slots_[slot] && slots_[slot]->computed == slots_[slot]->known);
  ++slots_[slot]->known;
}

void Scheduler::Admit(StepPlan* plan) {
  int32_t slot = 0;
  int64_t plan_tokens = 0;
  while (!waiting_.empty()) {
    while (slot < static_cast<int64_t>(slots_.size()) && slots_[slot]) ++slot;
    if (slot == static_cast<int64_t>(slots_.size())) return;
    ScheduledRequest& request = waiting_.front();
    // The first one always goes: admissible requests fit a plan alone.
    if (plan_tokens > 0 && plan_tokens + PlanTokens(request) > limits_.plan_tokens) return;
    const int64_t blocks =
        BlocksFor(static_cast<int64_t>(request.tokens.size()), request.max_tokens);
    if (!pool_.Reserve(blocks))
      return;  // first come, first served: nobody overtakes a large request
    plan_tokens += PlanTokens(request);
    slots_[slot] = Running{request.id, static_cast<int64_t>(request.tokens.size()), 0, blocks, {}};
    slot_of_[request.id] = slot;
    order_.push_back(slot);
    plan->started.push_back(
        {slot, std::move(request.tokens), std::move(request.token_set), std::move(request.params)});
    waiting_.pop_front();
  }
}

void Scheduler::AddRows(int32_t slot, int64_t count, StepPlan* plan) {
  Running& running = *slots_[slot];
  const int64_t end = running.computed + count;
  BlockGrowth growth{slot, {}};
  while (static_cast<int64_t>(running.blocks.size()) * kBlockTokens < end) {
    LOCKSTEP_CHECK(running.promised > 0);
    --running.promised;
    running.blocks.push_back(pool_.Take());
    growth.blocks.push_back(running.blocks.back());
  }
  if (!growth.blocks.empty()) plan->growth.push_back(std::move(growth));
  plan->spans.push_back({slot, static_cast<int32_t>(running.computed), static_cast<int32_t>(count),
                         end == running.known ? SpanOutput::kSample : SpanOutput::kNone});
  running.computed = end;
}

// Even shares of the budget; what a short prompt leaves over is shared by the others.
void Scheduler::AddPromptRows(const std::vector<int32_t>& prompts, int64_t budget, StepPlan* plan) {
  const auto count =
      static_cast<size_t>(std::clamp<int64_t>(budget, 0, static_cast<int64_t>(prompts.size())));
  std::vector<std::pair<int64_t, size_t>> needs;  // rows, index: the short ones first
  for (size_t i = 0; i < count; ++i) {
    needs.emplace_back(slots_[prompts[i]]->known - slots_[prompts[i]]->computed, i);
  }
  std::sort(needs.begin(), needs.end());
  std::vector<int64_t> shares(count);
  for (size_t done = 0; done < count; ++done) {
    const auto others = static_cast<int64_t>(count - done);
    const auto [need, index] = needs[done];
    shares[index] = std::min(need, (budget + others - 1) / others);
    budget -= shares[index];
  }
  for (size_t i = 0; i < count; ++i) AddRows(prompts[i], shares[i], plan);
}

// A new plan, with what has ended since the last one.
void Scheduler::NextEmpty(StepPlan* plan) {
  *plan = StepPlan();
  plan->step = ++step_;
  plan->released = std::exchange(released_, {});
  for (const int32_t slot : plan->released) {
    pool_.Release(slots_[slot]->blocks);
    pool_.Unreserve(slots_[slot]->promised);
    slots_[slot].reset();
  }
}

bool Scheduler::Next(StepPlan* plan) {
  if (order_.empty() && waiting_.empty()) return false;
  NextEmpty(plan);
  Admit(plan);

  std::vector<int32_t> prompts;
  int64_t rows = 0;
  for (const int32_t slot : order_) {
    const int64_t left = slots_[slot]->known - slots_[slot]->computed;
    if (left == 1) {
      AddRows(slot, 1, plan);
      ++rows;
    } else if (left > 1) {
      prompts.push_back(slot);
    }
  }
  AddPromptRows(prompts, std::min(limits_.prefill_rows, limits_.max_rows - rows), plan);
  // Everything that runs has something to compute, and what waits alone was admitted: its blocks
  // fit an empty pool.
  LOCKSTEP_CHECK(!plan->spans.empty());
  return true;
}

}  // namespace lockstep
