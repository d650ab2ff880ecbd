#include "runtime/engine/scheduler.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
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
                              3 * request.params.logit_bias.size() + request.grammar.size() / 4);
}

struct Need {
  int64_t rows = 0;  // at least 1
  double weight = 1;
};

// Shares of the budget by weight; what one does not need is shared by the others. If there are more
// than rows, the first get one each, otherwise nobody gets none.
std::vector<int64_t> Shares(int64_t budget, const std::vector<Need>& needs) {
  const auto count =
      static_cast<size_t>(std::clamp<int64_t>(budget, 0, static_cast<int64_t>(needs.size())));
  std::vector<size_t> order(count);  // who is satisfied with least comes first
  double weight = 0;
  for (size_t i = 0; i < count; ++i) {
    order[i] = i;
    weight += needs[i].weight;
  }
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return static_cast<double>(needs[a].rows) / needs[a].weight <
           static_cast<double>(needs[b].rows) / needs[b].weight;
  });
  std::vector<int64_t> shares(needs.size());
  for (size_t done = 0; done < count; ++done) {
    const auto others = static_cast<int64_t>(count - done - 1);
    const Need& need = needs[order[done]];
    const auto fair =
        static_cast<int64_t>(std::ceil(static_cast<double>(budget) * need.weight / weight));
    shares[order[done]] = std::min(need.rows, std::clamp<int64_t>(fair, 1, budget - others));
    budget -= shares[order[done]];
    weight -= need.weight;
  }
  return shares;
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

// Blocks of a prompt of that length that may be there already.
int64_t Scheduler::MostShared(int64_t length) const {
  return limits_.prefix_cache ? (length - 1) / kBlockTokens : 0;
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
  queue_.Push(std::move(request));
}

void Scheduler::Remove(uint64_t id) {
  const auto running = slot_of_.find(id);
  if (running == slot_of_.end()) {
    queue_.Remove(id);
    return;
  }
  const int32_t slot = running->second;
  slot_of_.erase(running);
  std::erase(order_, slot);
  released_.push_back(slot);
  queue_.Leave(slots_[slot]->request.priority, slots_[slot]->request.client);
}

std::optional<uint64_t> Scheduler::RequestAt(int32_t slot) const {
  if (slot < 0 || slot >= static_cast<int64_t>(slots_.size()) || !slots_[slot]) return std::nullopt;
  const uint64_t id = slots_[slot]->request.id;
  return slot_of_.contains(id) ? std::optional<uint64_t>(id) : std::nullopt;
}

void Scheduler::Append(int32_t slot, int32_t token) {
  LOCKSTEP_CHECK(slots_[slot] && slots_[slot]->left() == 0);
  ScheduledRequest& request = slots_[slot]->request;
  request.tokens.push_back(token);
  ++request.sampled;
  --request.max_tokens;
}

// What the last plans have computed of a sequence can be shared from now on.
void Scheduler::Publish(Running& running) {
  if (!limits_.prefix_cache) return;
  while (static_cast<int64_t>(running.published.size() + 1) * kBlockTokens <= running.computed) {
    const size_t next = running.published.size();
    const int32_t before = next == 0 ? -1 : running.published.back();
    const int32_t block =
        pool_.Publish(before, TokensOf(running.request.tokens, next), running.blocks[next]);
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
  int64_t plan_tokens = 0;
  while (const ScheduledRequest* request = queue_.Next()) {
    // The first one always goes: admissible requests fit a plan alone.
    if (plan_tokens > 0 && plan_tokens + PlanTokens(*request) > limits_.plan_tokens) return;
    plan_tokens += PlanTokens(*request);
    // Nobody overtakes the one whose turn it is, however large it is.
    if (!Enter(plan) && !EnterInsteadOfOthers(plan)) return;
  }
}

int32_t Scheduler::FreeSlot() const {
  return static_cast<int32_t>(std::find(slots_.begin(), slots_.end(), std::nullopt) -
                              slots_.begin());
}

// Who waits first gets a slot, if there is one and the blocks that it may need can be had. Its last
// token is computed in any case, since its logits are wanted.
bool Scheduler::Enter(StepPlan* plan) {
  const int32_t slot = FreeSlot();
  if (slot == static_cast<int64_t>(slots_.size())) return false;
  const ScheduledRequest& request = *queue_.Next();
  const auto length = static_cast<int64_t>(request.tokens.size());
  Running running;
  const auto most = static_cast<size_t>(MostShared(length));
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
  running.request = queue_.Pop();
  const ScheduledRequest& entered = running.request;
  plan->started.push_back({slot, entered.tokens, static_cast<int32_t>(entered.sampled),
                           entered.token_set, entered.params, running.blocks, entered.grammar});
  slot_of_[entered.id] = slot;
  order_.push_back(slot);
  slots_[slot] = std::move(running);
  return true;
}

// Who waits first gets the place of sequences of worse priorities: the worst, and of these the
// youngest, go first, and only if it helps.
bool Scheduler::EnterInsteadOfOthers(StepPlan* plan) {
  const ScheduledRequest& request = *queue_.Next();
  std::vector<int32_t> victims;
  for (auto slot = order_.rbegin(); slot != order_.rend(); ++slot) {
    const ScheduledRequest& other = slots_[*slot]->request;
    if (other.priority > request.priority && other.max_tokens > 0) victims.push_back(*slot);
  }
  if (!WouldFit(request, victims)) return false;
  std::stable_sort(victims.begin(), victims.end(), [this](int32_t a, int32_t b) {
    return slots_[a]->request.priority > slots_[b]->request.priority;
  });
  for (const int32_t slot : victims) {
    Preempt(slot, plan);
    if (Enter(plan)) return true;
  }
  return false;
}

bool Scheduler::WouldFit(const ScheduledRequest& request,
                         const std::vector<int32_t>& victims) const {
  if (victims.empty()) return false;
  int64_t room = pool_.available();
  std::unordered_map<int32_t, int64_t> held;  // published blocks, by how many of the victims
  for (const int32_t slot : victims) {
    const Running& victim = *slots_[slot];
    room += victim.promised;
    for (const int32_t block : victim.published) ++held[block];
    for (size_t i = 0; i < victim.blocks.size(); ++i)
      room += i >= victim.published.size() || victim.published[i] != victim.blocks[i];
  }
  for (const auto& [block, holders] : held) room += pool_.holders(block) == holders;
  // What others hold and this one can share is no room, and not needed.
  const auto length = static_cast<int64_t>(request.tokens.size());
  int64_t needed = BlocksFor(length, request.max_tokens);
  int32_t block = -1;
  for (int64_t i = 0; i < MostShared(length); ++i) {
    block = pool_.Find(block, TokensOf(request.tokens, static_cast<size_t>(i)));
    if (block < 0) break;
    const auto found = held.find(block);
    needed -= pool_.holders(block) > (found == held.end() ? 0 : found->second);
  }
  return needed <= room;
}

// The sequence waits again. What it has computed stays as long as its room is not wanted.
void Scheduler::Preempt(int32_t slot, StepPlan* plan) {
  Running& running = *slots_[slot];
  Publish(running);
  Give(running);
  slot_of_.erase(running.request.id);
  std::erase(order_, slot);
  plan->released.push_back(slot);
  queue_.Return(std::move(running.request));
  slots_[slot].reset();
  ++preemptions_;
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
                         count == running.left() ? SpanOutput::kSample : SpanOutput::kNone});
  running.computed = end;
  const ScheduledRequest& request = running.request;
  queue_.Charge(request.priority, request.client, request.weight, count);
}

// Everybody who has a prompt to compute, by priority: a better one takes all that it can use.
// Within a priority the clients share by weight, and each one's prompts evenly.
void Scheduler::AddPromptRows(int64_t budget, StepPlan* plan) {
  std::map<int32_t, std::map<std::string, std::vector<int32_t>>>
      prompts;  // slots, first come first
  for (const int32_t slot : order_) {
    const ScheduledRequest& request = slots_[slot]->request;
    if (slots_[slot]->left() > 1) prompts[request.priority][request.client].push_back(slot);
  }
  for (const auto& [priority, clients] : prompts) {
    std::vector<std::pair<double, const std::vector<int32_t>*>> turns;  // who got least comes first
    for (const auto& [client, slots] : clients)
      turns.emplace_back(queue_.service(priority, client), &slots);
    std::stable_sort(turns.begin(), turns.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    std::vector<Need> needs;
    for (const auto& [service, slots] : turns) {
      Need need{0, slots_[slots->front()]->request.weight};
      for (const int32_t slot : *slots) need.rows += slots_[slot]->left();
      needs.push_back(need);
    }
    const std::vector<int64_t> of_clients = Shares(budget, needs);
    for (size_t i = 0; i < turns.size(); ++i) {
      const std::vector<int32_t>& slots = *turns[i].second;
      needs.clear();
      for (const int32_t slot : slots) needs.push_back({slots_[slot]->left()});
      const std::vector<int64_t> of_prompts = Shares(of_clients[i], needs);
      for (size_t k = 0; k < slots.size(); ++k) {
        if (of_prompts[k] > 0) AddRows(slots[k], of_prompts[k], plan);
        budget -= of_prompts[k];
      }
    }
  }
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

void Scheduler::NextSave(StepPlan* plan) {
  NextEmpty(plan);
  plan->kind = PlanKind::kSave;
  plan->kept.chains = pool_.Idle(kMostKeptBlocks, &plan->kept.blocks);
}

bool Scheduler::Next(StepPlan* plan, int64_t prompt_rows) {
  if (order_.empty() && queue_.size() == 0) return false;
  NextEmpty(plan);
  Admit(plan);

  int64_t decodes = 0;
  for (const int32_t slot : order_) {
    if (slots_[slot]->left() != 1) continue;
    AddRows(slot, 1, plan);
    ++decodes;
  }
  int64_t most = std::min(prompt_rows, limits_.prefill_rows);
  if (decodes == 0) most = std::max(limits_.prefill_rows, limits_.prefill_rows_alone);
  AddPromptRows(std::min(most, limits_.max_rows - decodes), plan);
  // Everything that runs has something to compute, and what waits alone was admitted: its blocks
  // fit an empty pool.
  LOCKSTEP_CHECK(!plan->spans.empty());
  return true;
}

}  // namespace lockstep
