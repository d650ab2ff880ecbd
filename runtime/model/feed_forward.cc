// The second half of a layer on one rank: a dense feed-forward, or the experts that the router
// chooses. Shapes: R rows of this step, D hidden, F this rank's feed-forward columns, E experts of
// which each row takes the top k.
#include <cstring>
#include <span>

#include "runtime/base/digest.h"
#include "runtime/model/decoder.h"

namespace lockstep {

uint64_t FeedForward::bytes() const {
  uint64_t bytes = down->bytes();
  for (const PackedPtr& part : gate_up.parts) bytes += part->bytes();
  return bytes;
}

kernels::RouterArgs Decoder::RouteOf(const Mixture& mixture, size_t index, Range rows) const {
  kernels::RouterArgs route = router_;
  route.rows = rows.size();
  route.correction = mixture.correction.data();
  const auto row = static_cast<int64_t>(index) * limits_.max_rows + rows.begin;
  route.chosen = scratch_.chosen + row * route.top_k;
  return route;
}

kernels::ExpertGroups Decoder::GroupsOf(size_t index, Range rows) const {
  kernels::ExpertGroups groups = scratch_.groups;
  groups.group_count = scratch_.group_counts + 2 * index + (rows.begin == 0 ? 0 : 1);
  return groups;
}

Status Decoder::ChooseExperts(const Layer& layer, size_t index, Range rows) {
  if (!layer.mixture.has_value()) return OkStatus();
  const Mixture& mixture = *layer.mixture;
  const kernels::RouterArgs route = RouteOf(mixture, index, rows);
  ops_.MatMul(queue_, *mixture.router, nullptr, NormedOf(rows), route.rows, scratch_.router_logits,
              route.experts);  // [R, E]
  ops_.Route(queue_, route);   // [R, k]
  if (!rank0_choices_.empty()) LOCKSTEP_RETURN_IF_ERROR(TakeChoices(route));
  ops_.GroupRows(queue_, route, GroupsOf(index, rows));
  choices_[index].rows[rows.begin == 0 ? 0 : 1] = rows;
  choices_[index].expert_bytes = mixture.experts.bytes() / static_cast<uint64_t>(route.experts);
  return OkStatus();
}

void Decoder::ShareChoices() {
  if (group_.size() == 1) return;
  const int64_t slots = limits_.max_rows * config_.num_experts_per_tok;
  rank0_choices_.resize(static_cast<size_t>(slots) * (sizeof(int32_t) + sizeof(float)));
}

Status Decoder::TakeChoices(const kernels::RouterArgs& route) {
  const auto count = static_cast<size_t>(route.rows * route.top_k);
  const std::span<std::byte> bytes =
      std::span(rank0_choices_).first(count * (sizeof(int32_t) + sizeof(float)));
  const size_t weights_at = count * sizeof(int32_t);
  LOCKSTEP_RETURN_IF_ERROR(Finish());
  if (group_.rank() == 0) {
    std::memcpy(bytes.data(), route.chosen, weights_at);
    std::memcpy(bytes.data() + weights_at, route.weights, count * sizeof(float));
    return Broadcast(group_, bytes, 0);
  }
  LOCKSTEP_RETURN_IF_ERROR(Broadcast(group_, bytes, 0));
  std::memcpy(route.chosen, bytes.data(), weights_at);
  std::memcpy(route.weights, bytes.data() + weights_at, count * sizeof(float));
  for (size_t i = 0; i < count; ++i) {
    if (route.chosen[i] < 0 || route.chosen[i] >= route.experts)
      return InternalError("rank 0 chose expert %d of %d", route.chosen[i], route.experts);
  }
  return OkStatus();
}

void Decoder::CountChoices() {
  for (size_t index = 0; index < choices_.size(); ++index) {
    const LayerChoices& layer = choices_[index];
    for (const Range& rows : layer.rows) {
      if (rows.size() == 0) continue;
      const int64_t row = static_cast<int64_t>(index) * limits_.max_rows + rows.begin;
      const int64_t top_k = router_.top_k;
      digest_ = DigestOf(scratch_.chosen + row * top_k, static_cast<size_t>(rows.size() * top_k),
                         digest_);
      expert_bytes_ +=
          layer.expert_bytes * static_cast<uint64_t>(*GroupsOf(index, rows).group_count);
    }
  }
}

void Decoder::FeedForwardPart(const Layer& layer, size_t index, Range rows, float* partial) {
  if (layer.dense.has_value()) {
    DenseFeedForward(*layer.dense, rows, partial);
  } else {
    MixtureOfExperts(*layer.mixture, index, rows, partial);
  }
}

void Decoder::DenseFeedForward(const FeedForward& ffn, Range rows, float* partial) {
  const int64_t columns = ffn.down->inputs();
  const int64_t count = rows.size();
  ffn.gate_up.MatMul(ops_, queue_, nullptr, NormedOf(rows), count, scratch_.gate_up);  // [R, 2 F]
  ops_.SiluMul(queue_, scratch_.gate_up, count, columns, scratch_.activated);          // [R, F]
  ops_.MatMul(queue_, *ffn.down, nullptr, scratch_.activated, count, partial,
              config_.hidden_size);  // [R, D]
}

void Decoder::MixtureOfExperts(const Mixture& mixture, size_t index, Range rows, float* partial) {
  const kernels::RouterArgs route = RouteOf(mixture, index, rows);
  const kernels::ExpertGroups groups = GroupsOf(index, rows);
  const int64_t chosen = route.rows * route.top_k;
  const FeedForward& experts = mixture.experts;
  const int64_t columns = experts.down->inputs();
  experts.gate_up.GroupedMatMul(ops_, queue_, groups, NormedOf(rows), true,
                                scratch_.expert_gate_up);  // [R k, 2 F]
  ops_.SiluMul(queue_, scratch_.expert_gate_up, chosen, columns, scratch_.expert_activated);
  ops_.GroupedMatMul(queue_, *experts.down, groups, scratch_.expert_activated, false,
                     scratch_.expert_out, config_.hidden_size);  // [R k, D]
  const float* shared = nullptr;
  if (mixture.shared.has_value()) {
    DenseFeedForward(*mixture.shared, rows, scratch_.shared_out);
    shared = scratch_.shared_out;
  }
  ops_.CombineExperts(queue_, route, groups, scratch_.expert_out, shared, config_.hidden_size,
                      partial);
}

}  // namespace lockstep
