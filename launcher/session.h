// A session: this process as one rank of its world, ready to compute. Commands that need a model
// open one; it decides which rank this is, starts the others where that is its task, joins them,
// compares what must be equal, plans the memory and loads this rank's slice of the weights.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "collectives/bootstrap.h"
#include "collectives/group.h"
#include "runtime/base/options.h"
#include "runtime/base/status.h"
#include "runtime/base/thread_pool.h"
#include "runtime/kernels/backend.h"
#include "runtime/model/model.h"

namespace lockstep {

struct SessionNeeds {
  // False: join the ranks only (no checkpoint is touched and model() must not be called).
  bool model = true;
  // Float32 activations whatever --exact says, for results that are compared with a reference.
  bool exact = false;
  // This rank joins a cluster and is never alone.
  bool worker = false;
  // Files of ranks: their probe prompt is computed before the session is open, and logits that
  // differ from the recorded ones are an error. False: the command does it itself, on all ranks.
  bool probe = true;
  // Reads memory for a moment before the weights are there, for RankReport::memory_rate.
  bool measure_memory = false;
  // Looks at this rank's files before they are loaded, for as long as it takes; may be empty. An
  // error on one rank ends all.
  std::function<Status(const OpenedModel& opened)> check_files;
  // Puts something around the backend before anything uses it, to measure; may be empty.
  std::function<std::unique_ptr<kernels::Backend>(std::unique_ptr<kernels::Backend>)> wrap_backend;
  // The limits that the command wants, from the model's configuration; must give the same on every
  // rank. Empty: LimitsFromOptions, with as many KV blocks as fit into memory.
  std::function<StatusOr<ModelLimits>(const ModelConfig& config)> limits;
  // As in BootstrapOptions.
  std::shared_ptr<const AddedLatency> added_latency;
};

class Session {
 public:
  virtual ~Session() = default;  // Close(OkStatus()) if it was not called
  virtual const Options& options() const = 0;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual Group& group() = 0;
  // In a pipeline (--mode pipeline) each stage holds some of the layers, and its ranks, which stand
  // one after the other, are a group of their own. Elsewhere there is one stage, of all ranks.
  virtual int stages() const = 0;
  virtual int stage() const = 0;     // this rank's
  virtual Group& stage_group() = 0;  // with a model alone
  virtual Membership& membership() = 0;
  virtual ThreadPool& pool() = 0;
  virtual const kernels::Backend& backend() const = 0;
  virtual kernels::Precision precision() const = 0;
  virtual Model& model() = 0;
  // From the first byte of the weights to the last one packed, without waiting for other ranks.
  virtual double load_seconds() const = 0;
  // One per rank of stage_group(), validated.
  virtual const std::vector<double>& shares() const = 0;
  // What Checkpoint::Digest says of the model, the same on all ranks.
  virtual uint64_t model_digest() const = 0;
  // The settings digest of the files of ranks that were loaded; nothing if they are none.
  virtual std::optional<uint64_t> files_settings() const = 0;

  // What to report for `status`: the membership's own finding (the named dead rank, the abort's
  // reason) is the cause, an error of an exchange only its effect. After a signal: "interrupted",
  // unless a rank turns out to be lost within 300 ms (mpirun signals everyone when one rank dies).
  virtual Status FinalStatus(const Status& status) const = 0;

  // Whether Reopen() may mend this end of the work: --recover was given, and a rank was lost whose
  // place another process can take (LostRank).
  virtual bool CanReopen(const Status& status) const = 0;
  // Tells all ranks `why`, if it is an error, and gives up the model, the group and the membership:
  // whoever uses them must have ended. Then Reopen or Close.
  virtual void GiveUp(const Status& why) = 0;
  // Forms the group again without the processes that are left having to start anew. Gives up what
  // is not yet, starts the lost rank where this process started it, waits for it elsewhere
  // (--start-timeout-ms; other ranks than 0 as much longer as rank 0 may wait before it forms a
  // group, --circuit-longest-wait-ms), joins and loads as OpenSession does, from unchanged files.
  // Every rank that is left calls it, and it calls what SessionNeeds has again. After an error:
  // Close with it.
  virtual Status Reopen(const Status& why) = 0;

  // Ends this rank's part in order and returns FinalStatus(status): an OK status announces an
  // orderly end, any other is told to the user (TellFinalError) and to all ranks first. Waits for
  // spawned ranks to end (5 s, then kills them). The session computes nothing afterwards. `return
  // session->Close(work(*session));` is how a command ends.
  virtual Status Close(const Status& status) = 0;
};

// Opens the session that `options` describe. Blocks until all ranks joined and loaded, or says who
// is missing. An error on one rank ends all ranks, each naming the rank at fault.
StatusOr<std::unique_ptr<Session>> OpenSession(const Options& options, const SessionNeeds& needs);

// The longest context: --max-model-len, else the model's own up to 32768. An error if the flag asks
// for more than the model has positions.
StatusOr<int64_t> MaxModelLen(const Options& options, const ModelConfig& config);
// Rows, outputs and positions from the options; kv_blocks for max_num_seqs sequences of full length
// (the session lowers it to what fits into memory, but never below one full sequence).
StatusOr<ModelLimits> LimitsFromOptions(const Options& options, const ModelConfig& config);

}  // namespace lockstep
