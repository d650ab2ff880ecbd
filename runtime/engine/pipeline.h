// One stage of a pipeline at its work: a step's rows in micro-batches, each received from the stage
// before, computed, and passed on, so that the stages compute at the same time.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "collectives/rank_meter.h"
#include "runtime/base/status.h"
#include "runtime/engine/stage_link.h"
#include "runtime/model/model.h"

namespace lockstep {

struct PipelineOptions {
  int stages = 1;
  int stage = 0;           // this rank's
  int64_t chunk_rows = 1;  // prompt rows of a micro-batch
  // How much longer than before a stage may wait (see WaitLimitMs).
  int64_t wait_ms = 30'000;
  RankMeter* meter = nullptr;  // in which the exchanges of the stage's ranks count; may be null
};

// Into which contiguous parts of its rows a step is cut: single rows of sequences (which decode)
// evenly into as many parts as there are stages, rows of prompts by `chunk_rows`, with the single
// rows beside the first of them; no part has more than `most_rows`. At least one part, which is
// empty if there are no rows. Every rank cuts alike.
std::vector<Range> SplitRows(const Batch& batch, int stages, int64_t chunk_rows, int64_t most_rows);

// The time of a stage, over all steps so far.
struct StageTimes {
  int64_t compute_ns = 0;   // in the model, but for the exchanges of the stage's ranks
  int64_t step_ns = 0;      // from the beginning of a step on this rank to its end
  int64_t wait_ns = 0;      // for rows of the stage before, or on rank 0 for the outcome
  int64_t send_ns = 0;      // until what is to be sent is copied, with waits for room
  uint64_t sent_bytes = 0;  // of rows and outcomes, without headers
};

class Pipeline {
 public:
  // `model` and `link` outlive it. A step may have more rows than the model's limits, a micro-batch
  // not.
  Pipeline(Model& model, StageLink& link, PipelineOptions options);

  bool first() const { return options_.stage == 0; }
  bool last() const { return options_.stage + 1 == options_.stages; }

  // At the last stage, after each micro-batch: what its output rows gave. `outputs` are their
  // indices among the output rows of the whole step.
  using Ending = std::function<Status(const StepOutput& output, Range outputs)>;
  // This stage's part of a step, the same batch on all ranks. `digest` is chained with those of the
  // model.
  Status Run(uint64_t step, const Batch& batch, const Ending& ending, uint64_t* digest);

  // The outcome of a step: from the first rank of the last stage, and to rank 0.
  Status SendOutcome(uint64_t step, int64_t rows, std::span<const std::byte> bytes);
  Status ReceiveOutcome(uint64_t step, int64_t rows, uint64_t most_bytes,
                        std::vector<std::byte>* bytes);

  const StageTimes& times() const { return times_; }
  // Of the last step.
  int64_t step_compute_ns() const { return step_compute_ns_; }
  int64_t step_wait_ns() const { return step_wait_ns_; }
  uint64_t step_weight_bytes() const { return step_weight_bytes_; }

 private:
  // Of a wait for or of a neighbour: wait_ms more than several times the longest step of about as
  // many rows; where there was none, many times wait_ms for every part.
  int64_t WaitLimitMs() const;
  Deadline WaitLimit() const { return Deadline::After(limit_ms_); }
  // This rank's time of the step that ends, with its waits.
  void Took(int64_t ns);
  Status Send(const StageHeader& header, std::span<const std::byte> bytes);
  // What part_ holds.
  Status RunPart(uint64_t step, uint32_t number, Range outputs, const Ending& ending,
                 uint64_t* digest);

  Model& model_;
  StageLink& link_;
  const PipelineOptions options_;
  StageTimes times_;
  int64_t parts_ = 1;
  size_t size_class_ = 0;                 // of the step: bits of its number of rows
  std::array<int64_t, 64> longest_ns_{};  // steps so far, by size_class_
  int64_t limit_ms_ = 0;                  // of the waits of this step
  int64_t run_ns_ = 0;                    // of the last Run
  int64_t step_compute_ns_ = 0;
  int64_t step_wait_ns_ = 0;
  uint64_t step_weight_bytes_ = 0;
  std::vector<std::byte> entering_;
  Batch part_;
};

}  // namespace lockstep
