#include "runtime/engine/scheduler.h"

#include <algorithm>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/model/model.h"

namespace lockstep {
namespace {

static_assert(std::tuple_size_v<BlockTokens> == kBlockTokens);

BlockTokens TokensOf(const std::vector<int32_t>& tokens, size_t block) {
  BlockTokens out;
  std::copy_n(tokens.begin() + static_cast<std::ptrdiff_t>(block * out.size()), out.size(),
              out.begin());
  return out;
}

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

void Scheduler::Append(int32_t slot, int32_t token) {
  LOCKSTEP_CHECK(slots_[slot] && slots_[slot]->left() == 0);
  slots_[slot]->tokens.push_back(token);
}

// What the last plans have computed of a sequence can be shared from now on.
void Scheduler::Publish(Running& running) {
  if (!limits_.prefix_cache) return;
  while (static_cast<int64_t>(running.published.size() + 1) * kBlockTokens <= running.computed) {
    const size_t next = running.published.size();
    const int32_t before = next == 0 ? -1 : running.published.back();
    const int32_t block =
        pool_.Publish(before, TokensOf(running.tokens, next), running.blocks[next]);
    if (block < 0) return;
    running.published.push_back(block);
  }
}

// Gives back everything that a sequence holds: what is published stays in the pool for others.
void Scheduler::Give(Running& running) {
  for (size_t i = running.blocks.size(); i-- > 0;) {
    if (i < running.published.size()) pool_.Drop(running.published[i]);
    if (i >= running.published.size() || running.published[i] != running.blocks[i])
      pool_.Release(running.blocks[i]);
  }
  pool_.Unreserve(running.promised);
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
    plan_tokens += PlanTokens(request);
    // First come, first served: nobody overtakes a large request.
    if (!Enter(request, slot, plan)) return;
    waiting_.pop_front();
  }
}

// The request gets the slot, if the blocks that it may need can be had. Its last token is computed
// in any case, since its logits are wanted.
bool Scheduler::Enter(ScheduledRequest& request, int32_t slot, StepPlan* plan) {
  const auto length = static_cast<int64_t>(request.tokens.size());
  Running running{.id = request.id};
  const size_t most =
      limits_.prefix_cache ? static_cast<size_t>((length - 1) / kBlockTokens) : size_t{0};
  const int64_t blocks = BlocksFor(length, request.max_tokens);
  // Not enough even if all of it were shared: looking is for later.
  if (pool_.available() < blocks - static_cast<int64_t>(most)) return false;
  while (running.published.size() < most) {
    const size_t next = running.published.size();
    const int32_t before = next == 0 ? -1 : running.published.back();
    const int32_t block = pool_.Find(before, TokensOf(request.tokens, next));
    if (block < 0) break;
    pool_.Hold(block);
    running.published.push_back(block);
  }
  running.blocks = running.published;
  const auto shared = static_cast<int64_t>(running.blocks.size());
  const int64_t promised = blocks - shared;
  if (!pool_.Reserve(promised)) {
    Give(running);
    return false;
  }
  running.promised = promised;
  running.computed = shared * kBlockTokens;
  running.tokens = request.tokens;
  plan->started.push_back({slot, std::move(request.tokens), std::move(request.token_set),
                           std::move(request.params), running.blocks});
  slots_[slot] = std::move(running);
  slot_of_[request.id] = slot;
  order_.push_back(slot);
  return true;
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
                         end == static_cast<int64_t>(running.tokens.size()) ? SpanOutput::kSample
                                                                            : SpanOutput::kNone});
  running.computed = end;
}

// Even shares of the budget; what a short prompt leaves over is shared by the others.
void Scheduler::AddPromptRows(const std::vector<int32_t>& prompts, int64_t budget, StepPlan* plan) {
  const auto count =
      static_cast<size_t>(std::clamp<int64_t>(budget, 0, static_cast<int64_t>(prompts.size())));
  std::vector<std::pair<int64_t, size_t>> needs;  // rows, index: the short ones first
  for (size_t i = 0; i < count; ++i) {
    needs.emplace_back(slots_[prompts[i]]->left(), i);
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
  for (const int32_t slot : order_) Publish(*slots_[slot]);
  for (const int32_t slot : plan->released) {
    Publish(*slots_[slot]);
    Give(*slots_[slot]);
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
    const int64_t left = slots_[slot]->left();
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
