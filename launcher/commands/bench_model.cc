// `lockstep bench decode`, `prefill` and, for both in one session, `steps`: steps of a model on all
// ranks, without text and sampling, as llama-bench measures. Every rank makes the same batches of
// random tokens from the same seed and calls the model itself; rank 0 keeps the time.
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <random>
#include <utility>

#include "launcher/agree.h"
#include "launcher/commands/bench.h"
#include "launcher/commands/bench_report.h"
#include "launcher/commands/best_tokens.h"
#include "launcher/commands/pipelines.h"
#include "launcher/memory.h"
#include "launcher/process.h"
#include "runtime/base/clock.h"
#include "runtime/base/os.h"
#include "runtime/kernels/timed_backend.h"
#include "runtime/model/probe.h"
#include "transport/delay.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kMostTokens = 16'777'216;
constexpr int64_t kWarmUpTokens = 8;
constexpr uint64_t kSeed = 4711;

struct TestPlan {
  bool decode = false;
  int64_t tokens = 0;
};

struct Plan {
  const char* benchmark = "";
  std::vector<TestPlan> tests;
  std::vector<int64_t> latencies_us;  // added ones: all tests with each
  int64_t context = 0;                // before what is decoded
  int64_t batch = 1;                  // sequences that are decoded together
  int64_t chunk = 1;                  // most tokens of a prompt in one step

  int64_t positions(const TestPlan& test) const {
    return test.tokens + (test.decode ? context : 0);
  }
  bool adds_latency() const { return latencies_us != std::vector<int64_t>{0}; }
};

StatusOr<ModelLimits> LimitsOf(const Plan& plan, const ModelConfig& config) {
  int64_t longest = 0, prompt = 1, sequences = 1;
  ModelLimits limits;
  for (const TestPlan& test : plan.tests) {
    const int64_t beside = test.decode ? plan.batch : 1;
    sequences = std::max(sequences, beside);
    longest = std::max(longest, plan.positions(test));
    prompt = std::max(prompt, test.decode ? plan.context : test.tokens);
    limits.kv_blocks = std::max(limits.kv_blocks, beside * BlocksOf(plan.positions(test)));
  }
  if (longest > config.max_position_embeddings) {
    return UsageError("the benchmark needs %d positions, but the model has %d", longest,
                      config.max_position_embeddings);
  }
  limits.max_rows = std::max(sequences, std::min(plan.chunk, prompt));
  limits.max_outputs = sequences;
  limits.max_model_len = longest;
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

  // What the steps give is noted there until the next call; null: it is not.
  void Watch(BestTokens* best) { best_ = best; }

  // In a pipeline the step has ended when rank 0 hears so, as it would of the tokens.
  Status Step(const Batch& batch) {
    if (!pipeline_.has_value()) {
      LOCKSTEP_ASSIGN_OR_RETURN(const StepOutput output, session_.model().Step(batch));
      Note(output);
      return OkStatus();
    }
    ++step_;
    const auto note = [this](const StepOutput& output, Range) {
      Note(output);
      return OkStatus();
    };
    LOCKSTEP_RETURN_IF_ERROR(pipeline_->Run(step_, batch, note, &digest_));
    if (pipeline_->last() && session_.stage_group().rank() == 0)
      return pipeline_->SendOutcome(step_, batch.rows(), {});
    if (session_.rank() != 0) return OkStatus();
    return pipeline_->ReceiveOutcome(step_, batch.rows(), 0, &nothing_);
  }

  // In a pipeline: so far.
  std::optional<StageTimes> times() const {
    if (!pipeline_.has_value()) return std::nullopt;
    return pipeline_->times();
  }

 private:
  explicit Stepper(Session& session) : session_(session) {}

  void Note(const StepOutput& output) {
    if (best_ != nullptr && output.outputs > 0)
      best_->Note(output.logits, output.vocab.begin, output.outputs);
  }

  Session& session_;
  std::unique_ptr<StageLink> link_;
  std::optional<Pipeline> pipeline_;
  uint64_t step_ = 0;
  uint64_t digest_ = 0;
  std::vector<std::byte> nothing_;
  BestTokens* best_ = nullptr;
};

class Steps {
 public:
  Steps(Session& session, Stepper& stepper, const Plan& plan, bool decode)
      : session_(session),
        stepper_(stepper),
        plan_(plan),
        decode_(decode),
        step_rows_(plan.chunk * ChunksOfStep(session)),
        random_(kSeed) {
    const ModelLimits& limits = session.model().limits();
    const int64_t sequences = decode ? plan.batch : 1;
    const int64_t blocks = std::min(limits.kv_blocks / sequences, BlocksOf(limits.max_model_len));
    for (int64_t sequence = 0; sequence < sequences; ++sequence) {
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
    return decode_ ? Run({0, plan_.batch}, plan_.context, count, 1, true)
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
  const bool decode_;
  const int64_t step_rows_;  // of a prompt
  std::mt19937_64 random_;
  Batch batch_;
};

// What one rank measures of a test: by the backend, which lives in the session, of exchanges and,
// in a pipeline, of its stage; beside all of it, what it adds to the network.
struct Clocks {
  kernels::TimedBackend* backend = nullptr;
  std::shared_ptr<AddedLatency> latency;  // null: none is added in this session
  int64_t ns = 0;                         // this rank's, of all repetitions
  RankMeter::Exchanges exchanges;
  std::optional<StageTimes> stage;
  BestTokens best;

  void SetLatency(int64_t us) const {
    if (latency != nullptr) latency->ns = us * 1000;
  }
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
  report["ns"] = clocks.ns;
  report["exchange"] = {{"calls", clocks.exchanges.calls},
                        {"ns", clocks.exchanges.ns},
                        {"wait_ns", clocks.exchanges.wait_ns}};
  if (session.options().sum_order != "any") report["exchange"]["bytes"] = clocks.exchanges.bytes;
  if (clocks.stage.has_value()) {
    report["stage"] = {{"compute_ns", clocks.stage->compute_ns},
                       {"wait_ns", clocks.stage->wait_ns},
                       {"send_ns", clocks.stage->send_ns},
                       {"bytes", clocks.stage->sent_bytes}};
  }
  report["best"] = clocks.best.ToJson();
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

// The warm-up of a test, whose best tokens are noted.
Status WarmUp(Steps& steps, Stepper& stepper, Clocks& clocks, const Plan& plan,
              const TestPlan& test) {
  if (test.decode && plan.context > 0) LOCKSTEP_RETURN_IF_ERROR(steps.RunContext());
  clocks.best.Clear();
  stepper.Watch(&clocks.best);
  const Status warm = steps.Test(test.decode ? std::min(test.tokens, kWarmUpTokens) : test.tokens);
  stepper.Watch(nullptr);
  return warm;
}

StageTimes Since(const StageTimes& before, const StageTimes& now) {
  return {now.compute_ns - before.compute_ns, now.step_ns - before.step_ns,
          now.wait_ns - before.wait_ns, now.send_ns - before.send_ns,
          now.sent_bytes - before.sent_bytes};
}

// Collective: one test, `repeat` times after a warm-up; on every rank the figures of all.
StatusOr<Json> RunTest(Session& session, Stepper& stepper, Clocks& clocks, const Plan& plan,
                       const TestPlan& planned, int64_t latency_us) {
  clocks.SetLatency(latency_us);
  Steps steps(session, stepper, plan, planned.decode);
  LOCKSTEP_RETURN_IF_ERROR(WarmUp(steps, stepper, clocks, plan, planned));
  // Timing every op of a device means to wait for it: that is done apart.
  const int64_t mine_at_once = session.backend().memory().has_value() ? 0 : 1;
  LOCKSTEP_ASSIGN_OR_RETURN(const int64_t at_once, AgreeOnSmallest(session.group(), mine_at_once));
  clocks.backend->Reset();
  clocks.backend->SetTimed(at_once != 0);
  clocks.exchanges = {};
  clocks.ns = 0;
  const std::optional<StageTimes> earlier = stepper.times();
  std::vector<double> seconds;
  for (int64_t repetition = 0; repetition < session.options().repeat; ++repetition) {
    LOCKSTEP_RETURN_IF_ERROR(Barrier(session.group()));
    const RankMeter::Exchanges before = session.membership().meter().exchanges;
    const int64_t start_ns = NowNs();
    LOCKSTEP_RETURN_IF_ERROR(steps.Test(planned.tokens));
    const int64_t took_ns = NowNs() - start_ns;
    seconds.push_back(static_cast<double>(took_ns) * 1e-9);
    clocks.ns += took_ns;
    const RankMeter::Exchanges& after = session.membership().meter().exchanges;
    clocks.exchanges.calls += after.calls - before.calls;
    clocks.exchanges.ns += after.ns - before.ns;
    clocks.exchanges.wait_ns += after.wait_ns - before.wait_ns;
    clocks.exchanges.bytes += after.bytes - before.bytes;
  }
  LOCKSTEP_RETURN_IF_ERROR(Barrier(session.group()));  // every message has left
  clocks.SetLatency(0);
  if (earlier.has_value()) clocks.stage = Since(*earlier, *stepper.times());
  clocks.backend->SetTimed(true);
  for (int64_t more = 0; at_once == 0 && more < session.options().repeat; ++more)
    LOCKSTEP_RETURN_IF_ERROR(steps.Test(planned.tokens));
  Json test = {{"decode", planned.decode},
               {"tokens", planned.tokens},
               {"added_latency_us", latency_us},
               {"context", plan.context},
               {"batch", planned.decode ? plan.batch : 1},
               {"seconds", seconds}};
  const Json mine = ReportOf(session, clocks);
  LOCKSTEP_ASSIGN_OR_RETURN(test["ranks"], GatherReports(session.group(), mine));
  std::vector<Json> best;
  for (Json& rank : test["ranks"]) {
    best.push_back(std::move(rank["best"]));
    rank.erase("best");
  }
  LOCKSTEP_ASSIGN_OR_RETURN(test["best_tokens"], MergeBestTokens(best));
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
  for (const int64_t latency_us : plan.latencies_us) {
    for (const TestPlan& planned : plan.tests) {
      LOCKSTEP_ASSIGN_OR_RETURN(Json test,
                                RunTest(session, *stepper, clocks, plan, planned, latency_us));
      report.tests.push_back(std::move(test));
    }
  }
  LOCKSTEP_ASSIGN_OR_RETURN(report.memory,
                            GatherReports(session.group(), MemoryReport(session, marks)));
  LOCKSTEP_ASSIGN_OR_RETURN(report.read_after_gb_per_s, MeasureRead(session));
  if (session.rank() != 0) return OkStatus();
  report.benchmark = plan.benchmark;
  report.warm_up = absl::StrFormat(
      "at most %d tokens of every decode and every prompt once, untimed", kWarmUpTokens);
  report.logit_error =
      ToleranceOf({}, {session.precision(), session.model().limits().cache_type}).near;
  report.collective = session.group().traits().name;
  report.kernels = session.backend().name();
  report.ranks = session.size();
  report.stages = session.stages();
  report.threads = session.pool().count();
  report.chunk = plan.chunk;
  PrintBenchReport(report, session.options());
  return OkStatus();
}

Status BenchModel(const Options& options, Plan plan) {
  plan.context = options.context;
  plan.batch = options.batch;
  plan.chunk = options.prefill_chunk;
  LOCKSTEP_ASSIGN_OR_RETURN(plan.latencies_us, ParseLatencies(options));
  Clocks clocks;
  if (plan.adds_latency()) clocks.latency = std::make_shared<AddedLatency>();
  MemoryMarks marks;
  SessionNeeds needs;
  needs.probe = false;  // nobody reads what is computed here
  needs.added_latency = clocks.latency;
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

Status AddTests(bool decode, const std::string& counts, const char* flag, Plan* plan) {
  LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<int64_t> tokens,
                            ParseCounts(counts, flag, kMostTokens));
  for (const int64_t count : tokens) plan->tests.push_back({decode, count});
  return OkStatus();
}

Status AddDecodes(const Options& options, Plan* plan) {
  return AddTests(true, options.tokens.empty() ? "32" : options.tokens, "--tokens", plan);
}

Status AddPrompts(const Options& options, const std::string& usual, Plan* plan) {
  return AddTests(false, options.prompt_tokens.empty() ? usual : options.prompt_tokens,
                  "--prompt-tokens", plan);
}

}  // namespace

Status BenchDecode(const Options& options) {
  Plan plan{.benchmark = "decode"};
  LOCKSTEP_RETURN_IF_ERROR(AddDecodes(options, &plan));
  return BenchModel(options, std::move(plan));
}

Status BenchPrefill(const Options& options) {
  Plan plan{.benchmark = "prefill"};
  LOCKSTEP_RETURN_IF_ERROR(AddPrompts(options, "128,512", &plan));
  return BenchModel(options, std::move(plan));
}

Status BenchSteps(const Options& options) {
  Plan plan{.benchmark = "steps"};
  LOCKSTEP_RETURN_IF_ERROR(AddDecodes(options, &plan));
  const std::string chunks =
      absl::StrFormat("%d,%d", options.prefill_chunk, 4 * options.prefill_chunk);
  LOCKSTEP_RETURN_IF_ERROR(AddPrompts(options, chunks, &plan));
  return BenchModel(options, std::move(plan));
}

}  // namespace lockstep
