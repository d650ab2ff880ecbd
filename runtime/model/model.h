// A model on one rank: its slice of the weights, its KV pages, and one step over a batch of rows.
#pragma once

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

  int64_t rows() const { return static_cast<int64_t>(tokens.size()); }
  void Clear();
};

// Valid until the next Step. All pointers are into the model's scratch.
struct StepOutput {
  int64_t outputs = 0;
  Range vocab;              // the vocabulary rows that this rank holds
  std::span<float> logits;  // [outputs, vocab.size()] raw; the caller may change them in place
  std::span<const float>
      hidden;  // [outputs, hidden_size] after the final norm, identical on all ranks
  uint64_t digest =
      0;  // over router choices and final hidden bits of this step, identical on all ranks
};

struct ModelLimits {
  int64_t max_rows = 0;       // rows in one step
  int64_t max_outputs = 0;    // output rows in one step
  int64_t max_model_len = 0;  // positions per sequence
  int64_t kv_blocks = 0;      // KV blocks in the pool, each kBlockTokens positions
};

inline constexpr int64_t kBlockTokens = 16;

struct LoadProgress {
  uint64_t bytes_done = 0;
  uint64_t bytes_total = 0;
};

struct LoadOptions {
  std::string directory;
  std::vector<double> shares;  // one per rank, validated
  ModelLimits limits;
  std::function<void(const LoadProgress&)>
      progress;  // called now and then from the loading thread; may be empty
};

// Bytes that a rank will need, known before anything is read.
struct MemoryPlan {
  uint64_t weight_bytes = 0;
  uint64_t kv_bytes = 0;
  uint64_t scratch_bytes = 0;
  uint64_t total() const { return weight_bytes + kv_bytes + scratch_bytes; }
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
  // Computes one step together with all other ranks (collective). Allocates nothing.
  virtual StatusOr<StepOutput> Step(const Batch& batch) = 0;
};

// Reads this rank's slices and makes the model ready. Collective: every rank of `group` calls it
// with the same options. `group`, `backend` and `pool` must outlive the model.
StatusOr<std::unique_ptr<Model>> LoadModel(const LoadOptions& options, Group& group,
                                           const kernels::Backend& backend, ThreadPool& pool);

// The bytes one rank needs under `limits`, with `threads` compute threads and weights of
// `element_bytes`.
MemoryPlan PlanMemory(const ModelConfig& config, const ModelLimits& limits,
                      const std::vector<double>& shares, int rank, uint64_t element_bytes,
                      int threads);

// A digest of config, tensor names, shapes and types, and file sizes: equal on all ranks or they do
// not serve the same model. Reads headers only.
StatusOr<uint64_t> CheckpointDigest(const std::string& directory);

}  // namespace lockstep
