// A model on one rank: its slice of the weights, its KV pages, and one step over a batch of rows.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "collectives/group.h"
#include "runtime/base/status.h"
#include "runtime/base/thread_pool.h"
#include "runtime/kernels/backend.h"
#include "runtime/model/config.h"
#include "runtime/model/shape.h"
#include "runtime/model/stages.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/partition.h"

namespace lockstep {

// The rows of one step. A row is one token of one sequence at one position; a sequence may have
// several rows (its positions ascending in row order: a prompt chunk, or a token and its drafts).
// Equal on all ranks.
struct Batch {
  std::vector<int32_t> tokens;     // [rows] ids, each in [0, vocab_size)
  std::vector<int32_t> positions;  // [rows] 0-based
  std::vector<int32_t> sequences;  // [rows] index into block_tables
  std::vector<std::vector<int32_t>>
      block_tables;  // per sequence: KV block of positions [i*block, (i+1)*block)
  std::vector<int32_t>
      output_rows;  // rows whose logits and final hidden state are wanted, ascending
  // [rows, hidden_size] where the model does not begin: what the stage before gave for these rows
  // (StepOutput::leaving). Elsewhere empty.
  std::span<const float> entering;

  int64_t rows() const { return static_cast<int64_t>(tokens.size()); }
  void Clear();
};

// Valid until the next Step or Draft. All pointers are into the model's scratch. Where the model
// does not end, `leaving` and the digest alone.
struct StepOutput {
  int64_t outputs = 0;
  Range vocab;              // the vocabulary rows that this rank holds
  std::span<float> logits;  // [outputs, vocab.size()] raw; the caller may change them in place
  std::span<const float> hidden;  // [outputs, hidden_size] after the final norm, identical on all
                                  // ranks (with LoadOptions::share_choices but for last bits)
  // The same of all rows of the batch, [rows, hidden_size], for a draft; empty without the layer
  // for drafts.
  std::span<const float> all_hidden;
  uint64_t weight_bytes = 0;  // of the matrices that were read, an expert once for all its rows
  uint64_t digest =
      0;  // over final hidden bits and router choices of the rows computed, identical on all ranks
  std::span<const float> leaving;  // [rows, hidden_size] what the next stage goes on with
};

struct ModelLimits {
  int64_t max_rows = 0;       // rows in one step
  int64_t max_outputs = 0;    // output rows in one step
  int64_t max_model_len = 0;  // positions per sequence
  int64_t kv_blocks = 0;      // KV blocks in the pool, each kBlockTokens positions
  kernels::CacheType cache_type = kernels::CacheType::kF32;  // how the cache holds its numbers
  uint64_t exchange_bytes = 0;  // what the group takes beside the model (Membership::GroupBytes)
};

inline constexpr int64_t kBlockTokens = 16;

struct LoadProgress {
  uint64_t bytes_done = 0;
  uint64_t bytes_total = 0;
};

struct LoadOptions {
  std::string directory;       // or a .gguf file
  std::vector<double> shares;  // one per rank, validated
  StagePlace stage;
  ModelLimits limits;
  bool draft_layer = false;  // load the layer behind the last one (MTP) too; must be there
  // For a group whose ranks' kernels differ in their last bits: rank 0 chooses the experts of every
  // row, and the others take its choices (ADR 35). Equal on all ranks. No step runs in halves then.
  bool share_choices = false;
  std::function<void(const LoadProgress&)>
      progress;  // called now and then from the loading thread; may be empty
};

// What a rank holds of a checkpoint, known from the headers of its files.
struct SlicePlan {
  Cuts cuts;
  uint64_t weight_bytes = 0;            // in memory, as the backend keeps them
  uint64_t weight_bytes_per_token = 0;  // of those, what one token reads
  uint64_t work_bytes = 0;              // what the backend needs for products with them
  uint64_t staging_bytes = 0;           // the most memory that tensors pass through while loading
  std::vector<SliceRequest> requests;   // what will be read, in order
};

// Bytes that a rank will need, known before anything is read.
struct MemoryPlan {
  uint64_t weight_bytes = 0;
  uint64_t kv_bytes = 0;
  uint64_t scratch_bytes = 0;   // of a step
  uint64_t work_bytes = 0;      // of the backend
  uint64_t staging_bytes = 0;   // while loading, before there are cache and scratch
  uint64_t exchange_bytes = 0;  // of the group; not taken by the model
  // From the last weight on, and at the worst moment.
  uint64_t lasting() const {
    return weight_bytes + work_bytes + exchange_bytes + kv_bytes + scratch_bytes;
  }
  uint64_t total() const {
    return weight_bytes + work_bytes + exchange_bytes +
           std::max(staging_bytes, kv_bytes + scratch_bytes);
  }
};

class Model {
 public:
  virtual ~Model() = default;
  virtual const ModelConfig& config() const = 0;
  virtual const ModelLimits& limits() const = 0;
  virtual const MemoryPlan& memory() const = 0;
  // Bytes of checkpoint tensors that this rank read from files.
  virtual uint64_t bytes_read() const = 0;
  // Weight bytes that one decoded token makes this rank read (top-k experts, not all).
  virtual uint64_t bytes_per_token() const = 0;
  // What ranks round their parts of a layer's sums to in all later steps; equal on all ranks.
  virtual void SetWire(WireFormat wire) = 0;
  // From now on steps of at least so many rows run in two halves, of which one is computed while
  // the other's sums travel; 0: none does. Equal on all ranks, and changes no bit of the logits.
  // Starts a thread; throws std::system_error where the system allows none.
  virtual void SetOverlap(int64_t rows) = 0;
  // Computes one step together with all other ranks (collective). Allocates nothing.
  //
  // A row reads the cache up to its own position alone, and what its step writes there before. So
  // rows that were rejected need no undoing: a sequence goes on from the accepted length, with the
  // right tokens at the positions of the wrong ones, and no bit tells that those were ever there.
  virtual StatusOr<StepOutput> Step(const Batch& batch) = 0;

  // Whether it was loaded with LoadOptions::draft_layer.
  virtual bool has_draft_layer() const { return false; }
  // Guesses the tokens after the next ones with the draft layer (MTP); needs has_draft_layer().
  // Collective, allocates nothing, has the limits and ends the outputs of Step.
  //
  // A row of position t holds the token at position t + 1 (batch.tokens) and the final hidden state
  // of position t (hidden [rows, hidden_size], the same bits on all ranks): of a StepOutput, where
  // it may still stand, or kept from earlier. Its logits are for position t + 2. The layer keeps
  // its own cache under the same block tables, and a row reads all positions up to its own: they
  // come in order and without gaps, a prompt's too (an error otherwise), and are taken back and
  // written again as in Step.
  // To guess further: a row of position t + 1 with the guessed token and the hidden state that came
  // with the guess (StepOutput::hidden).
  virtual StatusOr<StepOutput> Draft(const Batch& batch, std::span<const float> hidden);

  // What this rank's cache holds of one KV block in all layers, the draft layer too, to be kept and
  // to be put into any block of a model that was loaded alike (same slice, cache type and layers):
  // bits that its own steps would have written there. `before` is the block whose positions come
  // before (-1: none), which was written first. Spans of block_bytes().
  virtual int64_t block_bytes() const = 0;
  virtual void ReadBlock(int32_t block, int32_t before, std::span<std::byte> to) const = 0;
  virtual void WriteBlock(int32_t block, int32_t before, std::span<const std::byte> from) = 0;
};

// A checkpoint as one rank sees it, checked and planned, before anything large is read.
struct OpenedModel {
  std::unique_ptr<Checkpoint> checkpoint;
  ModelConfig config;
  SlicePlan slice;
};
// `place.shares` has one validated share per rank; in a pipeline, per rank of this one's stage.
// Bytes are planned for `backend`.
StatusOr<OpenedModel> OpenModelFiles(const std::string& path, const RankPlace& place,
                                     bool draft_layer, const kernels::Backend& backend,
                                     const StagePlace& stage = {});

// Reads this rank's slices and makes the model ready. Collective: every rank of `group` calls it
// with the same options. `group`, `backend` and `pool` must outlive the model, which is that of
// `opened`; options.directory is not looked at.
StatusOr<std::unique_ptr<Model>> LoadModel(const OpenedModel& opened, const LoadOptions& options,
                                           Group& group, const kernels::Backend& backend,
                                           ThreadPool& pool);
// The same from options.directory.
StatusOr<std::unique_ptr<Model>> LoadModel(const LoadOptions& options, Group& group,
                                           const kernels::Backend& backend, ThreadPool& pool);

// The configuration of a checkpoint, whatever its files.
StatusOr<ModelConfig> ConfigOf(const Checkpoint& checkpoint);

// The slice of `rank`, with the draft layer if that is wanted. Tensors that are missing,
// contradict the configuration or have no place in the model are errors. Reads a few rows where a
// checkpoint has copies. Bytes are those of `backend`; without one, those of the portable layout.
StatusOr<SlicePlan> PlanSlice(const ModelConfig& config, const Checkpoint& checkpoint,
                              const std::vector<double>& shares, int rank, bool draft_layer = false,
                              const kernels::Backend* backend = nullptr,
                              const StagePlace& stage = {});

// The bytes one rank needs for its slice under `limits`, with `threads` compute threads.
MemoryPlan PlanMemory(const ModelConfig& config, const SlicePlan& slice, const ModelLimits& limits,
                      int rank, int threads);

}  // namespace lockstep
