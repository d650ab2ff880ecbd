// What a cluster gives with a model, each way of dividing it: whether it fits, how fast it is, and
// what limits it. Pure functions: the same question has the same answer everywhere.
// docs/planner.md has the formulas, and how far they are from what was measured.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/kernels/cache_row.h"
#include "runtime/model/config.h"
#include "runtime/model/model.h"
#include "runtime/planner/hardware.h"
#include "runtime/planner/model_bytes.h"

namespace lockstep::planner {

struct Load {
  int64_t users = 1;
  int64_t context = 8192;  // positions of each user: the cache holds so many, a token reads them
  int64_t prompt = 8192;   // how many of these, the last ones, are the prompt; 1 .. context
  int64_t chunk = 256;     // most rows of a prompt in one step
  kernels::CacheType cache = kernels::CacheType::kF32;
  double wire_bytes = 4;  // of a value in a sum between ranks
  // Drafts: the part that is right of each further token, given that those before it are.
  std::vector<double> draft_acceptance;
};

// A model counted for one rank that holds all, and for the ranks of a division.
struct CountedModel {
  ModelConfig config;
  std::vector<double> shares;  // one per rank, validated
  Cuts whole_cuts;             // for one rank
  RankBytes whole;
  Cuts cuts;  // for all ranks
  std::vector<RankBytes> slices;
};
StatusOr<CountedModel> CountModel(const Checkpoint& checkpoint, const std::vector<double>& shares);

// The parts of a time in seconds.
struct Parts {
  double read = 0;       // from the memory
  double slow_read = 0;  // from the slow one
  double arithmetic = 0;
  double exchange = 0;  // sums, or what stages hand on
  double total() const { return read + slow_read + arithmetic + exchange; }
  // Of the longest: "memory bandwidth", "memory behind the card", "arithmetic", "exchange".
  std::string Longest() const;
};

struct DecodeRate {
  int64_t users = 1;
  double tokens_per_s = 0;  // of all users together
  Parts step;               // of one step; of a pipeline: of one round
};

// One way of dividing a model.
struct Way {
  std::string name;    // "single", "pipeline", "tensor"
  bool fits = false;   // at Load::users and Load::context
  std::string reason;  // why it does not fit, and what the user can do; or why it is not measured
  // The engine divides models so (Engine::ways), and its constants are from runs that did. False:
  // what it would be with these constants.
  bool measured = true;
  std::vector<MemoryPlan> ranks;
  int64_t max_context = 0;  // for Load::users; 0: not even one token
  // What follows is empty unless it fits.
  std::vector<DecodeRate> decode;  // 1, 2, 4, ... and Load::users
  // Nothing where the arithmetic is not known: `prefill_reason` says so.
  double prefill_tokens_per_s = 0;
  Parts prefill;
  double ttft_s = 0;  // the prompt and the first token
  std::string prefill_reason;
  double joules_per_token = 0;      // one user decodes; 0: watts are not known
  double power_usd_per_month = 0;   // 0: not known, as the following
  double purchase_usd = 0;          // of the nodes that are used
  double months_to_break_even = 0;  // against the cloud; 0: never, or not known
  std::string cost_reason;          // why there is no month

  bool has_speed() const { return !decode.empty(); }
};

struct Answer {
  Way single, pipeline, tensor;
};

// `hardware` has memory and bandwidth of a node, and a link if there are two; `engine` a
// read_share; `model` as many shares as there are nodes. Shares divide the work; nodes are alike.
Answer Predict(const CountedModel& model, const Hardware& hardware, const Engine& engine,
               const Load& load);

}  // namespace lockstep::planner
