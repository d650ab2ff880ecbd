#include "runtime/kernels/timed_backend.h"

#include <algorithm>
#include <utility>

#include "runtime/base/clock.h"

namespace lockstep::kernels {
namespace {

// What rows see of their sequences' caches: `positions` counts what several rows of one sequence
// see once, `pairs` for each row.
struct Seen {
  int64_t positions = 0;
  int64_t pairs = 0;
};

// A sequence's rows stand beside each other.
Seen SeenBy(int64_t rows, const int32_t* positions, const int32_t* sequences) {
  Seen seen;
  int64_t longest = 0;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t length = int64_t{positions[row]} + 1;
    seen.pairs += length;
    longest = std::max(longest, length);
    if (row + 1 < rows && sequences[row + 1] == sequences[row]) continue;
    seen.positions += longest;
    longest = 0;
  }
  return seen;
}

}  // namespace

OpTime& TimedBackend::Entry(const char* op, int64_t outputs, int64_t inputs) const {
  for (size_t i = 0; i < count_; ++i) {
    OpTime& entry = times_[i];
    // Names are literals of this file: equal ones are one pointer.
    if (entry.op == op && entry.outputs == outputs && entry.inputs == inputs) return entry;
  }
  if (count_ + 1 >= times_.size()) {
    if (count_ < times_.size()) times_[count_++] = {.op = "others"};
    return times_.back();
  }
  times_[count_] = {.op = op, .outputs = outputs, .inputs = inputs};
  return times_[count_++];
}

template <typename Body>
OpTime& TimedBackend::Time(Queue& queue, const char* op, const Body& body,
                           const PackedMatrix* weights) const {
  if (!timed_) {
    body();
    return untimed_;
  }
  const int64_t start_ns = NowNs();
  body();
  const Status finished = inner_->Finish(queue);
  const int64_t ns = NowNs() - start_ns;
  if (fault_.ok()) fault_ = finished;
  OpTime& entry =
      weights == nullptr ? Entry(op, 0, 0) : Entry(op, weights->outputs(), weights->inputs());
  ++entry.calls;
  entry.ns += ns;
  return entry;
}

Status TimedBackend::Finish(Queue& queue) const {
  const Status finished = inner_->Finish(queue);
  const Status fault = std::exchange(fault_, OkStatus());
  return fault.ok() ? finished : fault;
}

void TimedBackend::MatMul(Queue& queue, const PackedMatrix& weights, const float* bias,
                          const float* x, int64_t rows, float* y, int64_t y_stride) const {
  OpTime& entry = Time(
      queue, "matmul", [&] { inner_->MatMul(queue, weights, bias, x, rows, y, y_stride); },
      &weights);
  entry.bytes += weights.bytes();
  entry.operations += static_cast<uint64_t>(2 * rows * weights.outputs() * weights.inputs());
}

void TimedBackend::GroupRows(Queue& queue, const RouterArgs& args,
                             const ExpertGroups& groups) const {
  Time(queue, "group_rows", [&] { inner_->GroupRows(queue, args, groups); });
}

void TimedBackend::GroupedMatMul(Queue& queue, const PackedMatrix& weights,
                                 const ExpertGroups& groups, const float* x, bool by_row, float* y,
                                 int64_t y_stride) const {
  OpTime& entry = Time(
      queue, "grouped_matmul",
      [&] { inner_->GroupedMatMul(queue, weights, groups, x, by_row, y, y_stride); }, &weights);
  const int64_t used = timed_ && fault_.ok() ? *groups.group_count : 0;
  const int64_t rows = used > 0 ? groups.groups[used - 1].end : 0;
  if (weights.count() > 0) {
    entry.bytes +=
        weights.bytes() / static_cast<uint64_t>(weights.count()) * static_cast<uint64_t>(used);
  }
  entry.operations += static_cast<uint64_t>(2 * rows * weights.outputs() * weights.inputs());
}

void TimedBackend::Embed(Queue& queue, const PackedMatrix& table, int64_t first_row,
                         const int32_t* tokens, int64_t rows, float* y) const {
  Time(queue, "embed", [&] { inner_->Embed(queue, table, first_row, tokens, rows, y); });
}

void TimedBackend::RmsNorm(Queue& queue, const float* x, const float* weight, double eps,
                           int64_t rows, int64_t dim, float* y) const {
  Time(queue, "rms_norm", [&] { inner_->RmsNorm(queue, x, weight, eps, rows, dim, y); });
}

void TimedBackend::AddRmsNorm(Queue& queue, float* x, const float* delta, const float* weight,
                              double eps, int64_t rows, int64_t dim, float* y) const {
  Time(queue, "add_rms_norm",
       [&] { inner_->AddRmsNorm(queue, x, delta, weight, eps, rows, dim, y); });
}

void TimedBackend::PrepareAttention(Queue& queue, const AttentionArgs& args) const {
  Time(queue, "prepare_attention", [&] { inner_->PrepareAttention(queue, args); });
}

void TimedBackend::Attention(Queue& queue, const AttentionArgs& args) const {
  OpTime& entry = Time(queue, "attention", [&] { inner_->Attention(queue, args); });
  const Seen seen = SeenBy(args.rows, args.positions, args.sequences);
  entry.bytes += static_cast<uint64_t>(2 * seen.positions * args.kv_heads * args.row_bytes());
  entry.operations += static_cast<uint64_t>(4 * seen.pairs * args.query_heads * args.head_dim);
}

void TimedBackend::PrepareLatentAttention(Queue& queue, const LatentAttentionArgs& args) const {
  Time(queue, "prepare_latent_attention", [&] { inner_->PrepareLatentAttention(queue, args); });
}

void TimedBackend::LatentAttention(Queue& queue, const LatentAttentionArgs& args) const {
  OpTime& entry = Time(queue, "latent_attention", [&] { inner_->LatentAttention(queue, args); });
  const Seen seen = SeenBy(args.rows, args.positions, args.sequences);
  entry.bytes += static_cast<uint64_t>(seen.positions * args.row_bytes());
  // Scores over latent and rotated key, then the sum of latents.
  entry.operations +=
      static_cast<uint64_t>(2 * seen.pairs * args.heads * (2 * args.latent_dim + args.rope_dim));
}

void TimedBackend::JoinHeads(Queue& queue, const float* x, int64_t heads, int64_t rows, int64_t dim,
                             float* y) const {
  Time(queue, "join_heads", [&] { inner_->JoinHeads(queue, x, heads, rows, dim, y); });
}

void TimedBackend::SiluMul(Queue& queue, const float* gate_up, int64_t rows, int64_t columns,
                           float* out) const {
  Time(queue, "silu_mul", [&] { inner_->SiluMul(queue, gate_up, rows, columns, out); });
}

void TimedBackend::Route(Queue& queue, const RouterArgs& args) const {
  Time(queue, "route", [&] { inner_->Route(queue, args); });
}

void TimedBackend::CombineExperts(Queue& queue, const RouterArgs& args, const ExpertGroups& groups,
                                  const float* expert_out, const float* shared, int64_t dim,
                                  float* y) const {
  Time(queue, "combine_experts",
       [&] { inner_->CombineExperts(queue, args, groups, expert_out, shared, dim, y); });
}

}  // namespace lockstep::kernels
