// `lockstep bench decode` and `lockstep bench prefill`: steps of a model on all ranks, without text
// and sampling, as llama-bench measures. Every rank makes the same batches of random tokens from
// the same seed and calls the model itself; rank 0 keeps the time.
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <random>
#include <utility>

#include "launcher/commands/bench.h"
#include "launcher/commands/bench_report.h"
#include "launcher/commands/pipelines.h"
#include "launcher/memory.h"
#include "launcher/process.h"
#include "runtime/base/clock.h"
#include "runtime/base/os.h"
#include "runtime/kernels/timed_backend.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kMostTokens = 16'777'216;
constexpr int64_t kWarmUpTokens = 8;
constexpr uint64_t kSeed = 4711;

struct Plan {
  bool decode = false;
  std::vector<int64_t> counts;  // tokens of each test
  int64_t context = 0;          // before them
  int64_t batch = 1;            // sequences that are decoded together
  int64_t chunk = 1;            // most tokens of a prompt in one step
};

StatusOr<ModelLimits> LimitsOf(const Plan& plan, const ModelConfig& config) {
  const int64_t longest = plan.context + *std::max_element(plan.counts.begin(), plan.counts.end());
  if (longest > config.max_position_embeddings) {
    return UsageError("the benchmark needs %d positions, but the model has %d", longest,
                      config.max_position_embeddings);
  }
  ModelLimits limits;
  limits.max_rows = std::max(
      plan.batch, std::min(plan.chunk, plan.decode ? std::max<int64_t>(plan.context, 1) : longest));
  limits.max_outputs = plan.batch;
  limits.max_model_len = longest;
  limits.kv_blocks = plan.batch * BlocksOf(longest);
  return limits;
}

// Computes batches on all ranks, in the way of the session's --mode.
class Stepper {
 public:
  static StatusOr<std::unique_ptr<Stepper>> Create(Session& session) {
    auto stepper = std::unique_ptr<Stepper>(new Stepper(session));
    if (session.stages() == 1) return stepper;
    LOCKSTEP_ASSIGN_OR_RETURN(stepper->link_, OpenStageLink(session));
    stepper->pipeline_.emplace(session.model(), *stepper->link_, PipelineOptionsOf(session));
    return stepper;
  }

  // In a pipeline the step has ended when rank 0 hears so, as it would of the tokens.
  Status Step(const Batch& batch) {
    if (!pipeline_.has_value()) return session_.model().Step(batch).status();
    ++step_;
    LOCKSTEP_RETURN_IF_ERROR(pipeline_->Run(step_, batch, {}, &digest_));
    if (pipeline_->last() && session_.stage_group().rank() == 0)
      return pipeline_->SendOutcome(step_, batch.rows(), {});
    if (session_.rank() != 0) return OkStatus();
    return pipeline_->ReceiveOutcome(step_, batch.rows(), 0, &nothing_);
  }

  // In a pipeline: in the model so far, without exchanges.
  std::optional<int64_t> compute_ns() const {
    if (!pipeline_.has_value()) return std::nullopt;
    return pipeline_->times().compute_ns;
  }

 private:
  explicit Stepper(Session& session) : session_(session) {}

  Session& session_;
  std::unique_ptr<StageLink> link_;
  std::optional<Pipeline> pipeline_;
  uint64_t step_ = 0;
  uint64_t digest_ = 0;
  std::vector<std::byte> nothing_;
};

class Steps {
 public:
  Steps(Session& session, Stepper& stepper, const Plan& plan)
      : session_(session),
        stepper_(stepper),
        plan_(plan),
        step_rows_(plan.chunk * ChunksOfStep(session)),
        random_(kSeed) {
    const auto blocks = session.model().limits().kv_blocks / plan.batch;
    for (int64_t sequence = 0; sequence < plan.batch; ++sequence) {
      std::vector<int32_t>& table = batch_.block_tables.emplace_back(blocks);
      std::iota(table.begin(), table.end(), static_cast<int32_t>(sequence * blocks));
    }
  }

  // What stands before the tokens that are decoded.
  Status RunContext() {
    for (int64_t sequence = 0; sequence < plan_.batch; ++sequence) {
      LOCKSTEP_RETURN_IF_ERROR(
          Run({sequence, sequence + 1}, 0, plan_.context, step_rows_, /*every_step=*/false));
    }
    return OkStatus();
  }

  // The timed part of one test.
  Status Test(int64_t count) {
    return plan_.decode ? Run({0, plan_.batch}, plan_.context, count, 1, true)
                        : Run({0, 1}, 0, count, step_rows_, false);
  }

 private:
  struct Range {
    int64_t first, end;
  };

  // Of each of these sequences the tokens at positions [begin, begin + count), `chunk` in a step;
  // logits of the last one of each step, or only of the last of all.
  Status Run(Range sequences, int64_t begin, int64_t count, int64_t chunk, bool every_step) {
    for (int64_t at = begin; at < begin + count; at += chunk) {
      if (Interrupted()) return InterruptedError();
      const int64_t rows = std::min(chunk, begin + count - at);
      const bool with_logits = every_step || at + rows == begin + count;
      batch_.tokens.clear();
      batch_.positions.clear();
      batch_.sequences.clear();
      batch_.output_rows.clear();
      for (int64_t sequence = sequences.first; sequence < sequences.end; ++sequence)
        AddRows(static_cast<int32_t>(sequence), at, rows, with_logits);
      LOCKSTEP_RETURN_IF_ERROR(stepper_.Step(batch_));
    }
    return OkStatus();
  }

  void AddRows(int32_t sequence, int64_t at, int64_t rows, bool with_logits) {
    const auto vocabulary = static_cast<uint64_t>(session_.model().config().vocab_size);
    for (int64_t row = 0; row < rows; ++row) {
      batch_.tokens.push_back(static_cast<int32_t>(random_() % vocabulary));
      batch_.positions.push_back(static_cast<int32_t>(at + row));
      batch_.sequences.push_back(sequence);
    }
    if (with_logits) batch_.output_rows.push_back(static_cast<int32_t>(batch_.tokens.size() - 1));
  }

  Session& session_;
  Stepper& stepper_;
  const Plan& plan_;
  const int64_t step_rows_;  // of a prompt
  std::mt19937_64 random_;
  Batch batch_;
};

// What one rank measured of a test: by the backend, which lives in the session, and of exchanges.
struct Clocks {
  kernels::TimedBackend* backend = nullptr;
  RankMeter::Exchanges exchanges;
  std::optional<int64_t> compute_ns;  // in a pipeline
};

Json ReportOf(Session& session, const Clocks& clocks) {
  Json report = {{"rank", session.rank()}, {"ops", Json::array()}};
  for (const kernels::OpTime& time : clocks.backend->times()) {
    report["ops"].push_back({{"op", time.op},
                             {"outputs", time.outputs},
                             {"inputs", time.inputs},
                             {"calls", time.calls},
                             {"ns", time.ns},
                             {"bytes", time.bytes},
                             {"operations", time.operations}});
  }
  report["exchange"] = {{"calls", clocks.exchanges.calls}, {"ns", clocks.exchanges.ns}};
  if (clocks.compute_ns.has_value()) report["compute_ns"] = *clocks.compute_ns;
  const Model& model = session.model();
  report["weight_bytes_per_token"] = model.bytes_per_token();
  report["kv_bytes_per_position"] =
      model.memory().kv_bytes / static_cast<uint64_t>(model.limits().kv_blocks * kBlockTokens);
  return report;
}

StatusOr<Json> GatherReports(Group& group, const Json& mine) {
  LOCKSTEP_ASSIGN_OR_RETURN(const auto words, GatherWords(group, mine.dump()));
  Json all = Json::array();
  for (const std::string& word : words) {
    Json report = Json::parse(word, nullptr, /*allow_exceptions=*/false);
    if (report.is_discarded()) return InternalError("a rank's report is not JSON");
    all.push_back(std::move(report));
  }
  return all;
}

// Collective: one test, `repeat` times after a warm-up; on every rank the figures of all.
StatusOr<Json> RunTest(Session& session, Stepper& stepper, Clocks& clocks, const Plan& plan,
                       int64_t count) {
  Steps steps(session, stepper, plan);
  if (plan.decode) {
    if (plan.context > 0) LOCKSTEP_RETURN_IF_ERROR(steps.RunContext());
    LOCKSTEP_RETURN_IF_ERROR(steps.Test(std::min(count, kWarmUpTokens)));
  } else {
    LOCKSTEP_RETURN_IF_ERROR(steps.Test(count));
  }
  clocks.backend->Reset();
  clocks.exchanges = {};
  const std::optional<int64_t> computed_ns = stepper.compute_ns();
  std::vector<double> seconds;
  for (int64_t repetition = 0; repetition < session.options().repeat; ++repetition) {
    LOCKSTEP_RETURN_IF_ERROR(Barrier(session.group()));
    const RankMeter::Exchanges before = session.membership().meter().exchanges;
    const int64_t start_ns = NowNs();
    LOCKSTEP_RETURN_IF_ERROR(steps.Test(count));
    seconds.push_back(static_cast<double>(NowNs() - start_ns) * 1e-9);
    const RankMeter::Exchanges& after = session.membership().meter().exchanges;
    clocks.exchanges.calls += after.calls - before.calls;
    clocks.exchanges.ns += after.ns - before.ns;
  }
  Json test = {
      {"tokens", count}, {"context", plan.context}, {"batch", plan.batch}, {"seconds", seconds}};
  if (computed_ns.has_value()) clocks.compute_ns = *stepper.compute_ns() - *computed_ns;
  const Json mine = ReportOf(session, clocks);
  LOCKSTEP_ASSIGN_OR_RETURN(test["ranks"], GatherReports(session.group(), mine));
  return test;
}

struct MemoryMarks {
  uint64_t process = 0;  // before anything was loaded
  uint64_t loaded = 0;   // the most until all was loaded
};

Json MemoryReport(Session& session, const MemoryMarks& marks) {
  const MemoryPlan& plan = session.model().memory();
  return {{"planned_bytes", plan.lasting()},          {"planned_peak_bytes", plan.total()},
          {"weight_bytes", plan.weight_bytes},        {"kv_bytes", plan.kv_bytes},
          {"scratch_bytes", plan.scratch_bytes},      {"work_bytes", plan.work_bytes},
          {"staging_bytes", plan.staging_bytes},      {"process_bytes", marks.process},
          {"peak_while_loading_bytes", marks.loaded}, {"resident_bytes", os::ResidentBytes()}};
}

// Every rank.
Status Measure(Session& session, Clocks& clocks, const Plan& plan, const MemoryMarks& marks) {
  BenchReport report;
  LOCKSTEP_ASSIGN_OR_RETURN(report.read_before_gb_per_s, MeasureRead(session));
  LOCKSTEP_ASSIGN_OR_RETURN(report.peak, MeasurePeak(session));
  LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<Stepper> stepper, Stepper::Create(session));
  for (const int64_t count : plan.counts) {
    LOCKSTEP_ASSIGN_OR_RETURN(Json test, RunTest(session, *stepper, clocks, plan, count));
    report.tests.push_back(std::move(test));
  }
  LOCKSTEP_ASSIGN_OR_RETURN(report.memory,
                            GatherReports(session.group(), MemoryReport(session, marks)));
  LOCKSTEP_ASSIGN_OR_RETURN(report.read_after_gb_per_s, MeasureRead(session));
  if (session.rank() != 0) return OkStatus();
  report.decode = plan.decode;
  report.warm_up = plan.decode
                       ? absl::StrFormat("at most %d tokens of every test, untimed", kWarmUpTokens)
                       : "every prompt once, untimed";
  report.collective = session.group().traits().name;
  report.kernels = session.backend().name();
  report.ranks = session.size();
  report.stages = session.stages();
  report.threads = session.pool().count();
  report.chunk = plan.chunk;
  PrintBenchReport(report, session.options());
  return OkStatus();
}

Status BenchModel(const Options& options, const Plan& plan) {
  Clocks clocks;
  MemoryMarks marks;
  SessionNeeds needs;
  needs.probe = false;  // nobody reads what is computed here
  needs.wrap_backend = [&](std::unique_ptr<kernels::Backend> inner) {
    auto timed = std::make_unique<kernels::TimedBackend>(std::move(inner));
    clocks.backend = timed.get();
    return timed;
  };
  needs.limits = [&](const ModelConfig& config) {
    marks.process = os::ResidentBytes();
    return LimitsOf(plan, config);
  };
  LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<Session> session, OpenSession(options, needs));
  marks.loaded = os::PeakResidentBytes();
  const InterruptScope interrupts;
  return session->Close(Measure(*session, clocks, plan, marks));
}

}  // namespace

Status BenchDecode(const Options& options) {
  Plan plan;
  plan.decode = true;
  plan.context = options.context;
  plan.batch = options.batch;
  plan.chunk = options.prefill_chunk;
  LOCKSTEP_ASSIGN_OR_RETURN(plan.counts, ParseCounts(options.tokens.empty() ? "32" : options.tokens,
                                                     "--tokens", kMostTokens));
  return BenchModel(options, plan);
}

Status BenchPrefill(const Options& options) {
  Plan plan;
  plan.chunk = options.prefill_chunk;
  LOCKSTEP_ASSIGN_OR_RETURN(
      plan.counts, ParseCounts(options.prompt_tokens.empty() ? "128,512" : options.prompt_tokens,
                               "--prompt-tokens", kMostTokens));
  return BenchModel(options, plan);
}

}  // namespace lockstep
