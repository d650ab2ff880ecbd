// The forward pass, with the two exchanges of a layer written where they happen (RunLayer, and
// RunLayersInHalves for long prompts). Shapes: R rows of this step, D hidden, V this rank's
// vocabulary rows.
#include "runtime/model/decoder.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <span>

#include "runtime/base/check.h"
#include "runtime/base/digest.h"
#include "runtime/model/rope.h"

namespace lockstep {
namespace {

uint64_t BytesOfEveryStep(Weights& weights) {
  uint64_t bytes = weights.head != nullptr ? weights.head->bytes() : 0;
  for (Layer& layer : weights.layers) {
    for (const PackedPtr* matrix : MatricesOf(layer)) bytes += *matrix ? (*matrix)->bytes() : 0;
    if (layer.mixture.has_value()) bytes -= layer.mixture->experts.bytes();
  }
  return bytes;
}

}  // namespace

Decoder::Decoder(ModelConfig config, const ModelLimits& limits, const LocalShape& shape,
                 Weights weights, const ModelPlace& place)
    : config_(std::move(config)),
      limits_(limits),
      shape_(shape),
      step_bytes_(BytesOfEveryStep(weights)),
      weights_(std::move(weights)),
      group_(place.group),
      ops_(place.backend),
      queue_{&place.pool} {}

Status Decoder::Allocate(const MemoryPlan& plan, uint64_t bytes_read) {
  LOCKSTEP_CHECK(plan.weight_bytes == weights_.bytes);
  const size_t slot_bytes = PartialSum::SlotBytes(limits_.max_rows * config_.hidden_size);
  if (group_.size() > 1 && group_.traits().slot_bytes < slot_bytes) {
    return InternalError("slots of %d bytes are too small for %d rows, which need %d",
                         group_.traits().slot_bytes, limits_.max_rows, slot_bytes);
  }
  memory_ = plan;
  bytes_read_ = bytes_read;
  LOCKSTEP_ASSIGN_OR_RETURN(kv_, ops_.Allocate(memory_.kv_bytes + 64, "the KV cache"));
  LOCKSTEP_ASSIGN_OR_RETURN(storage_, ops_.Allocate(memory_.scratch_bytes, "the step's scratch"));
  // Pages that a first step touches cost it a tenth of its time and more. Those of a device stay
  // there.
  if (!ops_.memory().has_value()) std::memset(storage_.data(), 0, storage_.bytes());
  Arena arena(&storage_);
  scratch_ = TakeScratch(config_, shape_, limits_, queue_.pool->count(), &arena);
  choices_.resize(static_cast<size_t>(shape_.layers.size() + (has_draft_layer() ? 1 : 0)));
  last_rows_.reserve(static_cast<size_t>(limits_.max_rows));
  last_positions_.resize(static_cast<size_t>(limits_.max_rows));
  if (has_draft_layer()) drafted_.resize(static_cast<size_t>(limits_.kv_blocks));
  return OkStatus();
}

Status Decoder::CheckBatch(const Batch& batch) {
  const int64_t rows = batch.rows();
  if (rows < 1 || rows > limits_.max_rows || batch.positions.size() != batch.tokens.size() ||
      batch.sequences.size() != batch.tokens.size() ||
      static_cast<int64_t>(batch.output_rows.size()) > limits_.max_outputs ||
      static_cast<int64_t>(batch.block_tables.size()) > limits_.max_rows) {
    return InternalError("a step of %d rows and %d outputs does not fit the limits of %d and %d",
                         rows, batch.output_rows.size(), limits_.max_rows, limits_.max_outputs);
  }
  const size_t entering =
      begins_model() ? 0 : static_cast<size_t>(rows) * static_cast<size_t>(config_.hidden_size);
  if (batch.entering.size() != entering) {
    return InternalError("a step of %d rows came with %d values of the stage before, not %d", rows,
                         batch.entering.size(), entering);
  }
  LOCKSTEP_RETURN_IF_ERROR(CheckRows(batch));
  for (const auto& table : batch.block_tables) {
    for (const int32_t block : table) {
      if (block < 0 || block >= limits_.kv_blocks)
        return InternalError("KV block %d is out of range", block);
    }
  }
  int32_t before = -1;  // RunLastLayer moves rows together in place
  for (const int32_t row : batch.output_rows) {
    if (row >= rows) return InternalError("output row %d is out of range", row);
    if (row <= before)
      return InternalError("output row %d stands behind %d: they must ascend", row, before);
    before = row;
  }
  return OkStatus();
}

Status Decoder::CheckRows(const Batch& batch) {
  std::fill(last_positions_.begin(), last_positions_.end(), -1);
  for (int64_t row = 0; row < batch.rows(); ++row) {
    const int32_t position = batch.positions[row];
    const auto sequence = static_cast<size_t>(batch.sequences[row]);
    const bool inside =
        batch.tokens[row] >= 0 && batch.tokens[row] < config_.vocab_size && position >= 0 &&
        position < limits_.max_model_len && sequence < batch.block_tables.size() &&
        static_cast<size_t>(position / kBlockTokens) < batch.block_tables[sequence].size();
    if (!inside)
      return InternalError("row %d of a step has a token, position or sequence out of range", row);
    if (position <= last_positions_[sequence]) {
      return InternalError("row %d of a step has position %d, not behind its sequence's %d", row,
                           position, last_positions_[sequence]);
    }
    last_positions_[sequence] = position;
  }
  return OkStatus();
}

StatusOr<StepOutput> Decoder::Step(const Batch& batch) {
  StatusOr<StepOutput> output = RunStep(batch);
  // Nothing goes on that reads the caller's batch, or a slot of a group that ends.
  if (!output.ok()) (void)Finish();
  return output;
}

StatusOr<StepOutput> Decoder::RunStep(const Batch& batch) {
  const std::vector<Layer>& layers = weights_.layers;
  LOCKSTEP_RETURN_IF_ERROR(begins_model()
                               ? BeginStep(batch, *weights_.embedding, layers[0].input_norm)
                               : EnterStage(batch, layers[0].input_norm));
  size_t index = 0;
  if (sums_ != nullptr && batch.rows() >= overlap_rows_) {
    LOCKSTEP_RETURN_IF_ERROR(RunLayersInHalves(batch.rows()));
    index = layers.size() - 1;
  }
  for (; index < layers.size(); ++index) {
    const bool last = index + 1 == layers.size();
    LOCKSTEP_RETURN_IF_ERROR(StepLayer(batch, index, layers[index],
                                       last ? weights_.final_norm : layers[index + 1].input_norm));
  }
  return ends_model() ? Head(batch, *weights_.head) : LeaveStage(batch.rows());
}

Status Decoder::BeginStep(const Batch& batch, const kernels::PackedMatrix& embedding,
                          const std::vector<float>& next_norm) {
  LOCKSTEP_RETURN_IF_ERROR(CheckBatch(batch));
  const int64_t rows = batch.rows();
  PrepareRows(batch);
  PrepareHeads(batch);
  PartialSum sum(group_, ops_, queue_, scratch_.sum);
  LOCKSTEP_ASSIGN_OR_RETURN(const float* embedded, Embed(embedding, batch, &sum));
  LOCKSTEP_RETURN_IF_ERROR(Finish());
  std::memcpy(scratch_.residual, embedded,
              static_cast<size_t>(rows * config_.hidden_size) * sizeof(float));
  ops_.RmsNorm(queue_, scratch_.residual, next_norm.data(), config_.rms_norm_eps, rows,
               config_.hidden_size, scratch_.normed);
  return OkStatus();
}

Status Decoder::EnterStage(const Batch& batch, const std::vector<float>& next_norm) {
  LOCKSTEP_RETURN_IF_ERROR(CheckBatch(batch));
  PrepareRows(batch);
  PrepareHeads(batch);
  std::memcpy(scratch_.residual, batch.entering.data(), batch.entering.size_bytes());
  ops_.RmsNorm(queue_, scratch_.residual, next_norm.data(), config_.rms_norm_eps, batch.rows(),
               config_.hidden_size, scratch_.normed);
  return OkStatus();
}

Status Decoder::StepLayer(const Batch& batch, size_t index, const Layer& layer,
                          const std::vector<float>& next_norm) {
  PartialSum sum(group_, ops_, queue_, scratch_.sum);
  const bool last =
      shape_.layers.begin + static_cast<int64_t>(index) + 1 == config_.num_hidden_layers;
  return last ? RunLastLayer(layer, batch, next_norm, &sum)
              : RunLayer(layer, index, next_norm, batch.rows(), &sum);
}

StatusOr<const float*> Decoder::Embed(const kernels::PackedMatrix& table, const Batch& batch,
                                      PartialSum* sum) {
  LOCKSTEP_ASSIGN_OR_RETURN(float* partial, sum->Begin(batch.rows() * config_.hidden_size));
  ops_.Embed(queue_, table, shape_.vocab.begin, batch.tokens.data(), batch.rows(),
             partial);  // [R, D], zeros for rows that other ranks hold
  return sum->Reduce();
}

Status Decoder::RunLayer(const Layer& layer, size_t index, const std::vector<float>& next_norm,
                         int64_t rows, PartialSum* sum) {
  const Range all{0, rows};
  LOCKSTEP_ASSIGN_OR_RETURN(float* partial, sum->Begin(rows * config_.hidden_size));
  Attention(layer, index, all, partial);
  LOCKSTEP_ASSIGN_OR_RETURN(const float* attended,
                            sum->Reduce(wire_));  // first exchange of the layer
  AddAndNorm(attended, layer.post_attention_norm, all);

  LOCKSTEP_RETURN_IF_ERROR(ChooseExperts(layer, index, all));
  LOCKSTEP_ASSIGN_OR_RETURN(partial, sum->Begin(rows * config_.hidden_size));
  FeedForwardPart(layer, index, all, partial);
  LOCKSTEP_ASSIGN_OR_RETURN(const float* fed, sum->Reduce(wire_));  // second exchange of the layer
  AddAndNorm(fed, next_norm, all);
  return OkStatus();
}

void Decoder::SetOverlap(int64_t rows) {
  overlap_rows_ = std::max<int64_t>(rows, 2);
  sums_.reset();
  // The choices travel between the sums.
  const bool shares = !rank0_choices_.empty();
  if (rows > 0 && group_.size() > 1 && !shares) sums_ = std::make_unique<SumQueue>(group_);
}

Status Decoder::RunLayersInHalves(int64_t rows) {
  struct Half {
    Range rows;
    const std::vector<float>* norm;  // that follows its sum under way; null: there is none
  };
  Half halves[2] = {{{0, FirstHalf(rows)}, nullptr}, {{FirstHalf(rows), rows}, nullptr}};
  const auto sum_of = [&](const Half& half) {
    const int64_t width = config_.hidden_size;
    return std::span(scratch_.sum, static_cast<size_t>(rows * width))
        .subspan(static_cast<size_t>(half.rows.begin * width),
                 static_cast<size_t>(half.rows.size() * width));
  };
  const auto finish = [&](Half& half) -> Status {
    if (half.norm == nullptr) return OkStatus();
    LOCKSTEP_RETURN_IF_ERROR(sums_->Wait());
    AddAndNorm(sum_of(half).data(), *half.norm, half.rows);
    half.norm = nullptr;
    return OkStatus();
  };
  const auto exchange = [&](Half& half, const std::vector<float>& norm) -> Status {
    LOCKSTEP_RETURN_IF_ERROR(Finish());
    sums_->Post(sum_of(half), wire_);
    half.norm = &norm;
    return OkStatus();
  };
  for (size_t index = 0; index + 1 < weights_.layers.size(); ++index) {
    const Layer& layer = weights_.layers[index];
    for (Half& half : halves) {
      LOCKSTEP_RETURN_IF_ERROR(finish(half));
      Attention(layer, index, half.rows, sum_of(half).data());
      LOCKSTEP_RETURN_IF_ERROR(exchange(half, layer.post_attention_norm));
    }
    for (Half& half : halves) {
      LOCKSTEP_RETURN_IF_ERROR(finish(half));
      LOCKSTEP_RETURN_IF_ERROR(ChooseExperts(layer, index, half.rows));
      FeedForwardPart(layer, index, half.rows, sum_of(half).data());
      LOCKSTEP_RETURN_IF_ERROR(exchange(half, weights_.layers[index + 1].input_norm));
    }
  }
  for (Half& half : halves) LOCKSTEP_RETURN_IF_ERROR(finish(half));
  return OkStatus();
}

Status Decoder::RunLastLayer(const Layer& layer, const Batch& batch,
                             const std::vector<float>& final_norm, PartialSum* sum) {
  const int64_t width = config_.hidden_size;
  const auto index = static_cast<size_t>(shape_.layers.size() - 1);
  LOCKSTEP_ASSIGN_OR_RETURN(float* partial, sum->Begin(batch.rows() * width));
  Attention(layer, index, {0, batch.rows()}, partial);
  LOCKSTEP_ASSIGN_OR_RETURN(const float* attended, sum->Reduce(wire_));
  // Behind the attention no row reads another: without a draft layer, which wants them all, those
  // that nobody asked for end here.
  std::vector<int32_t>& rows = last_rows_;
  rows.assign(batch.output_rows.begin(), batch.output_rows.end());
  if (has_draft_layer()) {
    rows.resize(static_cast<size_t>(batch.rows()));
    std::iota(rows.begin(), rows.end(), 0);
  }
  const auto count = static_cast<int64_t>(rows.size());
  if (count == 0) return OkStatus();
  const bool all = count == batch.rows();
  if (!all) LOCKSTEP_RETURN_IF_ERROR(Finish());
  for (int64_t i = 0; i < count && !all; ++i) {
    std::memmove(scratch_.residual + i * width, scratch_.residual + rows[i] * width, width * 4);
    std::memmove(scratch_.final_hidden + i * width, attended + rows[i] * width, width * 4);
  }
  const Range wanted{0, count};
  AddAndNorm(all ? attended : scratch_.final_hidden, layer.post_attention_norm, wanted);
  LOCKSTEP_RETURN_IF_ERROR(ChooseExperts(layer, index, wanted));
  LOCKSTEP_ASSIGN_OR_RETURN(partial, sum->Begin(count * width));
  FeedForwardPart(layer, index, wanted, partial);
  LOCKSTEP_ASSIGN_OR_RETURN(const float* fed, sum->Reduce(wire_));
  AddAndNorm(fed, final_norm, wanted);
  return OkStatus();
}

void Decoder::PrepareRows(const Batch& batch) {
  digest_ = 0;
  expert_bytes_ = 0;
  for (LayerChoices& layer : choices_) layer = {};
  RotaryAngles(config_.rope_theta, config_.rotary_dim, batch.positions, scratch_.cosines,
               scratch_.sines);
  for (size_t i = 0; i < batch.block_tables.size(); ++i)
    scratch_.tables[i] = batch.block_tables[i].data();
  router_.experts = config_.n_routed_experts;
  router_.top_k = config_.num_experts_per_tok;
  router_.n_group = config_.n_group;
  router_.topk_group = config_.topk_group;
  router_.normalize = config_.norm_topk_prob;
  router_.scale = static_cast<float>(config_.routed_scaling_factor);
  router_.logits = scratch_.router_logits;
  router_.weights = scratch_.expert_weights;
}

void Decoder::AddAndNorm(const float* delta, const std::vector<float>& norm, Range rows) {
  const int64_t first = rows.begin * config_.hidden_size;
  ops_.AddRmsNorm(queue_, scratch_.residual + first, delta, norm.data(), config_.rms_norm_eps,
                  rows.size(), config_.hidden_size, scratch_.normed + first);
}

StatusOr<StepOutput> Decoder::LeaveStage(int64_t rows) {
  LOCKSTEP_RETURN_IF_ERROR(Finish());
  CountChoices();
  StepOutput output;
  output.leaving =
      std::span<const float>(scratch_.residual, static_cast<size_t>(rows * config_.hidden_size));
  output.weight_bytes = step_bytes_ + expert_bytes_;
  output.digest = DigestOf(output.leaving.data(), output.leaving.size(), digest_);
  return output;
}

StatusOr<StepOutput> Decoder::Head(const Batch& batch, const kernels::PackedMatrix& head) {
  const int64_t hidden = config_.hidden_size;
  LOCKSTEP_RETURN_IF_ERROR(Finish());
  CountChoices();
  StepOutput output;
  output.outputs = static_cast<int64_t>(batch.output_rows.size());
  for (int64_t i = 0; i < output.outputs; ++i) {
    const int64_t row = has_draft_layer() ? batch.output_rows[i] : i;  // RunLastLayer
    std::memcpy(scratch_.final_hidden + i * hidden, scratch_.normed + row * hidden,
                static_cast<size_t>(hidden) * sizeof(float));
  }
  ops_.MatMul(queue_, head, nullptr, scratch_.final_hidden, output.outputs, scratch_.logits,
              shape_.vocab.size());
  LOCKSTEP_RETURN_IF_ERROR(Finish());
  output.vocab = shape_.vocab;
  output.logits =
      std::span(scratch_.logits, static_cast<size_t>(output.outputs * shape_.vocab.size()));
  output.hidden =
      std::span<const float>(scratch_.final_hidden, static_cast<size_t>(output.outputs * hidden));
  if (has_draft_layer()) {
    output.all_hidden =
        std::span<const float>(scratch_.normed, static_cast<size_t>(batch.rows() * hidden));
  }
  output.weight_bytes = step_bytes_ + expert_bytes_;
  if (rank0_choices_.empty()) {
    output.digest = DigestOf(output.hidden.data(), output.hidden.size(), digest_);
  } else {
    // Norms may differ in their last bits between these ranks; what they are of does not.
    const int64_t rows = has_draft_layer() ? batch.rows() : output.outputs;
    output.digest = DigestOf(scratch_.residual, static_cast<size_t>(rows * hidden), digest_);
  }
  return output;
}

std::vector<Range> Decoder::PagesOf(int32_t block) const {
  LOCKSTEP_CHECK(block >= 0 && block < limits_.kv_blocks);
  const int64_t layers = shape_.layers.size() + (has_draft_layer() ? 1 : 0);
  const int64_t arrays = layers * PageArrays(), array = CacheBytes() / PageArrays();
  const int64_t page = array / limits_.kv_blocks;
  std::vector<Range> pages;
  for (int64_t i = 0; i < arrays; ++i)
    pages.push_back({i * array + block * page, i * array + (block + 1) * page});
  return pages;
}

int64_t Decoder::block_bytes() const {
  const int64_t layers = shape_.layers.size() + (has_draft_layer() ? 1 : 0);
  const int64_t drafted = has_draft_layer() ? sizeof(int32_t) : 0;
  return layers * kBlockTokens * CacheBytesPerToken(config_, shape_, limits_.cache_type) + drafted;
}

void Decoder::ReadBlock(int32_t block, int32_t before, std::span<std::byte> to) const {
  LOCKSTEP_CHECK(static_cast<int64_t>(to.size()) == block_bytes());
  std::byte* next = to.data();
  for (const Range& page : PagesOf(block))
    next = std::copy_n(kv_.data() + page.begin, page.size(), next);
  if (!has_draft_layer()) return;
  const int32_t drafted = Drafted(block, before);
  std::memcpy(next, &drafted, sizeof(drafted));
}

void Decoder::WriteBlock(int32_t block, int32_t before, std::span<const std::byte> from) {
  LOCKSTEP_CHECK(static_cast<int64_t>(from.size()) == block_bytes());
  const std::byte* next = from.data();
  for (const Range& page : PagesOf(block)) {
    std::copy_n(next, page.size(), kv_.data() + page.begin);
    next += page.size();
  }
  if (!has_draft_layer()) return;
  int32_t drafted = 0;
  std::memcpy(&drafted, next, sizeof(drafted));
  drafted = std::clamp<int32_t>(drafted, 0, kBlockTokens);
  drafted_[block] = {before, before < 0 ? 0 : drafted_[before].stamp, drafted, ++draft_stamp_};
}

int64_t Decoder::CacheBytes() const {
  return limits_.kv_blocks * kBlockTokens * CacheBytesPerToken(config_, shape_, limits_.cache_type);
}

}  // namespace lockstep
