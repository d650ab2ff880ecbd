// The draft layer (multi-token prediction): one more decoder layer, which joins what the model
// thought at position t with the token that came out of it, and guesses the token after that one.
// Of either architecture: the attention is the model's own. Source of the arithmetic: transformers'
// MtpModel (modeling_layers.py), which llama.cpp and SGLang agree with. vLLM differs in two ways
// that change guesses and never an answer: it zeroes the embedding at position 0, and goes on with
// hidden states from before the last norm.
//
// Shapes: R rows of this step, D hidden, V this rank's vocabulary rows.
#include <algorithm>
#include <cstring>

#include "runtime/model/decoder.h"

namespace lockstep {
namespace {

// Every row of `half` [R, D] to where it stands in the rows of `joined` [R, 2 D].
void CopyHalf(const float* half, int64_t rows, int64_t hidden, float* joined) {
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(joined + row * 2 * hidden, half + row * hidden,
                static_cast<size_t>(hidden) * sizeof(float));
  }
}

}  // namespace

// A block knows how many positions it holds and which state of which block they follow. Whoever
// writes positions anew, of another sequence or behind rejected ones, parts the block from those
// that followed; only the first block of a table looks alike for its next sequence until then.
Status Decoder::ContinueDraft(const Batch& batch) {
  for (int64_t row = 0; row < batch.rows(); ++row) {
    const int32_t position = batch.positions[row];
    const std::vector<int32_t>& table = batch.block_tables[batch.sequences[row]];
    const int32_t place = position % kBlockTokens;
    const auto index = static_cast<size_t>(position / kBlockTokens);
    const int32_t before = index == 0 ? -1 : table[index - 1];
    DraftedBlock& block = drafted_[table[index]];
    const uint64_t before_stamp = before >= 0 ? drafted_[before].stamp : 0;
    const bool follows = block.before == before && block.before_stamp == before_stamp;
    const int32_t there = follows ? block.count : 0;
    if (place > there || (before >= 0 && drafted_[before].count < kBlockTokens)) {
      return InternalError(
          "a draft at position %d of sequence %d does not continue the draft layer's cache: "
          "positions before it were never drafted",
          position, batch.sequences[row]);
    }
    const uint64_t stamp = follows && place == there ? block.stamp : ++draft_stamp_;
    block = {before, before_stamp, place + 1, stamp};
  }
  return OkStatus();
}

int32_t Decoder::Drafted(int32_t block, int32_t before) const {
  const DraftedBlock& there = drafted_[block];
  const bool follows =
      there.before == before && (before < 0 || (there.before_stamp == drafted_[before].stamp &&
                                                drafted_[before].count == kBlockTokens));
  return follows ? there.count : 0;
}

StatusOr<StepOutput> Decoder::Draft(const Batch& batch, std::span<const float> hidden) {
  if (!has_draft_layer()) return Model::Draft(batch, hidden);
  StatusOr<StepOutput> output = RunDraft(batch, hidden);
  if (!output.ok()) (void)Finish();  // as Step
  return output;
}

StatusOr<StepOutput> Decoder::RunDraft(const Batch& batch, std::span<const float> hidden) {
  LOCKSTEP_RETURN_IF_ERROR(CheckBatch(batch));
  const int64_t rows = batch.rows();
  const int64_t width = config_.hidden_size;
  if (static_cast<int64_t>(hidden.size()) != rows * width) {
    return InternalError("a draft of %d rows came with %d values of hidden states, not %d", rows,
                         hidden.size(), rows * width);
  }
  LOCKSTEP_RETURN_IF_ERROR(ContinueDraft(batch));
  const DraftLayer& draft = *weights_.draft;
  const Layer& layer = draft.layer;
  const DraftScratch& scratch = scratch_.draft;
  PrepareRows(batch);
  PrepareHeads(batch);
  // The first op, since `hidden` may stand where others are going to write.
  ops_.RmsNorm(queue_, hidden.data(), draft.hidden_norm.data(), config_.rms_norm_eps, rows, width,
               scratch.hidden);
  PartialSum sum(group_, ops_, queue_, scratch_.sum);

  LOCKSTEP_ASSIGN_OR_RETURN(
      const float* embedded,
      Embed(draft.embedding != nullptr ? *draft.embedding : *weights_.embedding, batch, &sum));
  ops_.RmsNorm(queue_, embedded, draft.embedding_norm.data(), config_.rms_norm_eps, rows, width,
               scratch_.normed);
  LOCKSTEP_RETURN_IF_ERROR(Finish());
  CopyHalf(scratch_.normed, rows, width, scratch.joined);
  CopyHalf(scratch.hidden, rows, width, scratch.joined + width);

  // eh_proj is D x 2 D (105 MB for GLM-4.7 in BF16): each rank reads its share. Its rows, not its
  // columns: as many bytes and the same one exchange, but a row's sum is never parted, and blocks
  // of quantized rows are never cut. The others' rows count as zeros.
  LOCKSTEP_ASSIGN_OR_RETURN(float* partial, sum.Begin(rows * width));
  std::fill_n(partial, rows * width, 0.0f);
  ops_.MatMul(queue_, *draft.join, nullptr, scratch.joined, rows, partial + shape_.draft_rows.begin,
              width);  // [R, D]
  LOCKSTEP_ASSIGN_OR_RETURN(const float* joined, sum.Reduce());
  LOCKSTEP_RETURN_IF_ERROR(Finish());
  std::memcpy(scratch_.residual, joined, static_cast<size_t>(rows * width) * sizeof(float));
  ops_.RmsNorm(queue_, scratch_.residual, layer.input_norm.data(), config_.rms_norm_eps, rows,
               width, scratch_.normed);

  const size_t last_cache = weights_.layers.size();
  LOCKSTEP_RETURN_IF_ERROR(RunLayer(layer, last_cache, draft.final_norm, rows, &sum));
  return Head(batch, draft.head != nullptr ? *draft.head : *weights_.head);
}

}  // namespace lockstep
