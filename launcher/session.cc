#include "launcher/session.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <optional>
#include <thread>
#include <utility>

#include "launcher/agree.h"
#include "launcher/command_line.h"
#include "launcher/groups.h"
#include "launcher/memory.h"
#include "launcher/probe.h"
#include "launcher/process.h"
#include "launcher/progress.h"
#include "launcher/settings.h"
#include "launcher/spawn.h"
#include "launcher/stages.h"
#include "launcher/world.h"
#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/log.h"
#include "runtime/base/os.h"
#include "transport/socket.h"

namespace lockstep {
namespace {

constexpr int64_t kDefaultMaxModelLen = 32'768;
// How long spawned ranks may take to end: in order, or after an error was told to them.
constexpr int64_t kOrderlyEndMs = 5'000;
constexpr int64_t kFaultyEndMs = 2'000;
// How long after a signal the loss of a rank may still turn out to be its cause.
constexpr int kLossMayFollowMs = 300;

class OpenedSession final : public Session {
 public:
  OpenedSession(const Options& options, const SessionNeeds& needs)
      : options_(options), needs_(needs) {}
  ~OpenedSession() override {
    if (closed_) return;
    // An exception passes: the others wait for this rank, and it has no error to close with.
    if (std::uncaught_exceptions() > 0 && membership_ != nullptr)
      (void)TellAll(UsageError("ran out of memory or threads; what it printed says what to do"));
    (void)Close(OkStatus());
  }

  const Options& options() const override { return options_; }
  int rank() const override { return world_.rank; }
  int size() const override { return world_.size; }
  Group& group() override { return *group_; }
  int stages() const override { return world_.stages; }
  int stage() const override { return world_.stage(); }
  Group& stage_group() override { return stage_group_ != nullptr ? *stage_group_ : *group_; }
  Membership& membership() override { return *membership_; }
  ThreadPool& pool() override { return *pool_; }
  const kernels::Backend& backend() const override { return *backend_; }
  kernels::Precision precision() const override { return precision_; }
  Model& model() override { return *model_; }
  double load_seconds() const override { return load_seconds_; }
  const std::vector<double>& shares() const override { return world_.shares; }
  uint64_t model_digest() const override { return model_digest_.value_or(0); }
  std::optional<uint64_t> files_settings() const override { return files_settings_; }

  Status FinalStatus(const Status& status) const override {
    if (status.ok()) return status;
    if (membership_ == nullptr) return Interrupted() ? InterruptedError() : status;
    Status health = membership_->Health();
    if (!Interrupted()) return health.ok() ? status : health;
    // mpirun sends SIGTERM to everyone when a rank died, sometimes before the control channel
    // knows: give it a moment, so that the user reads which rank it was and not "interrupted".
    for (int waited_ms = 0; health.ok() && waited_ms < kLossMayFollowMs; waited_ms += 10) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      health = membership_->Health();
    }
    return KindOf(health) == ErrorKind::kPeerLost ? health : InterruptedError();
  }

  bool CanReopen(const Status& status) const override {
    // Nobody starts a rank 0 again that had spawned this one.
    const bool orphan = world_.origin == WorldOrigin::kSpawned && getppid() != parent_;
    return options_.recover && LostRank(status) >= 0 && !Interrupted() && !orphan;
  }
  void GiveUp(const Status& why) override;
  Status Reopen(const Status& why) override;
  Status Close(const Status& status) override;
  // Becomes a rank of its world, once.
  Status Enter();
  // Joins the others and opens the group.
  Status Join();
  Status Load();

 private:
  Status StartWorld();
  Status JoinRanks();
  Status CheckModel(OpenedModel* opened);
  StatusOr<ModelLimits> DecideLimits(const ModelConfig& config, const SlicePlan& slice);
  // A group with slots of that size (0: for all but steps), in place of the one that is there.
  Status OpenGroup(size_t slot_bytes);
  // The group of this rank's stage.
  Status OpenStageGroup(size_t slot_bytes);
  Status LoadWeights(const OpenedModel& opened, const ModelLimits& limits);
  Status CheckFiles(const OpenedModel& opened);
  // Files of ranks: their probe prompt, if one is recorded.
  Status CheckProbe(const Checkpoint& checkpoint);
  // Sums of the layers as --wire wants them, and what that does to the probe prompt's logits.
  Status StartWire();
  Status StartOverlap();
  // Rank 0's value, on every rank. Collective.
  StatusOr<int64_t> OfRankZero(int64_t value);
  // A line about this rank: where the user looks at its own output, for the curious elsewhere.
  void Report(const std::string& text) const;
  // Tells all ranks why this one cannot go on.
  Status TellAll(const Status& status);

  const Options options_;
  const SessionNeeds needs_;
  World world_;
  const pid_t parent_ = getppid();
  UniqueFd listener_;  // rank 0 of spawned ranks: keeps the port as long as they may come again
  std::unique_ptr<SpawnedRanks> spawned_;
  kernels::Precision precision_ = kernels::Precision::kFast;
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<ThreadPool> pool_;
  RankMemory memory_;  // before anything was loaded
  // Destroyed in reverse: the model uses the group, the group the membership.
  std::unique_ptr<Membership> membership_;
  std::unique_ptr<Group> group_;
  std::unique_ptr<Group> stage_group_;  // in a pipeline alone
  std::unique_ptr<Model> model_;
  double load_seconds_ = 0;
  std::optional<uint64_t> files_settings_;
  std::optional<uint64_t> model_digest_;
  int64_t patience_ms_ = 0;  // how long rank 0 may let the others wait for a group
  bool closed_ = false;
  bool told_any_order_ = false;
};

// Contract: only rank 0 writes to stdout. Whatever a library prints elsewhere goes to stderr.
void KeepStdoutForRankZero(int rank) {
  if (rank == 0) return;
  std::fflush(stdout);
  (void)dup2(STDERR_FILENO, STDOUT_FILENO);
}

Status OpenedSession::StartWorld() {
  LOCKSTEP_RETURN_IF_ERROR(CheckTogether(options_));
  ConfigureLog(options_, world_.size > 1 ? world_.rank : -1);
  KeepStdoutForRankZero(world_.rank);
  if (needs_.model && world_.stages > 1) LOCKSTEP_RETURN_IF_ERROR(CheckPipeline(options_));
  if (world_.origin == WorldOrigin::kReexec) return ReexecUnderMpirun(world_.size);
  if (world_.origin != WorldOrigin::kSpawner) return OkStatus();
  if (world_.rendezvous.empty()) {
    LOCKSTEP_ASSIGN_OR_RETURN(const int fd, ListenForRanks("127.0.0.1", &world_.rendezvous));
    listener_ = UniqueFd(fd);
    // The spawned ranks must not hold the listener open after this process has died.
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
  }
  LOCKSTEP_ASSIGN_OR_RETURN(spawned_,
                            SpawnedRanks::Start(world_.size, world_.rendezvous, world_.secret));
  return OkStatus();
}

Status OpenedSession::JoinRanks() {
  BootstrapOptions join;
  join.rank = world_.rank;
  join.size = world_.size;
  join.collective = options_.collective;
  join.rdma_mode = options_.rdma_mode;
  join.rendezvous = world_.rendezvous;
  join.interface = world_.interface;
  if (listener_.valid()) join.rendezvous_fd = fcntl(listener_.get(), F_DUPFD_CLOEXEC, 0);
  join.secret = world_.secret;
  join.settings = SettingsOf(options_, world_, backend_->name(), precision_);
  join.settings.push_back(
      {"probe at start", needs_.probe ? "yes" : "no", "start the same command on every node"});
  join.start_timeout_ms = options_.start_timeout_ms + patience_ms_;
  join.exchange_timeout_ms = options_.exchange_timeout_ms;
  join.peer_timeout_ms = options_.peer_timeout_ms;
  join.verify_exchanges = options_.verify_exchanges;
  join.added_latency = needs_.added_latency;
  join.ranks_on_this_host = world_.ranks_on_this_host;
  // Nobody computes yet, so there is nothing to end in order.
  const InterruptScope interrupts([] { EndInterrupted(); });
  LOCKSTEP_ASSIGN_OR_RETURN(membership_, Bootstrap(join));
  if (spawned_ != nullptr) spawned_->Joined();
  return OkStatus();
}

Status OpenedSession::Enter() {
  LOCKSTEP_ASSIGN_OR_RETURN(const Surroundings around, LookAround(options_));
  LOCKSTEP_ASSIGN_OR_RETURN(world_, DecideWorld(options_, around, needs_.worker));
  // Before anything is started: a wrong --kernels should not cost a spawn.
  if (options_.exact || needs_.exact) precision_ = kernels::Precision::kExact;
  if (!needs_.model) world_.device = {};  // nothing is computed there
  LOCKSTEP_ASSIGN_OR_RETURN(backend_,
                            kernels::MakeBackendOn(world_.device, options_.kernels, precision_));
  if (needs_.wrap_backend) backend_ = needs_.wrap_backend(std::move(backend_));
  return StartWorld();
}

Status OpenedSession::Join() {
  LOCKSTEP_RETURN_IF_ERROR(JoinRanks());
  const InterruptScope interrupts([this] { membership_->Abort(InterruptedError()); });
  if (pool_ == nullptr) {
    LOCKSTEP_ASSIGN_OR_RETURN(
        const int threads, TakeCores(world_, membership_->local_rank(), membership_->local_size()));
    pool_ = std::make_unique<ThreadPool>(threads, os::AllowedCpus());
  }
  LOCKSTEP_RETURN_IF_ERROR(OpenGroup(0));
  if (rank() == 0) {
    log::Info("%d rank%s, exchange %s, kernels %s, %d thread%s per rank", size(),
              size() == 1 ? "" : "s", group_->traits().name,
              backend_->name() + (options_.mixed_kernels ? " (the others' may differ)" : ""),
              pool_->count(), pool_->count() == 1 ? "" : "s");
  }
  return OkStatus();
}

Status OpenedSession::CheckModel(OpenedModel* opened) {
  LOCKSTEP_ASSIGN_OR_RETURN(const int sharers,
                            CountAlikeHere(*group_, *membership_, world_.device.Text()));
  memory_ = MemoryForRank(backend_->memory(), membership_->local_size(), sharers);
  LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<double> stage_shares,
                            DecideStageShares(world_, memory_.bytes(), *group_));
  const auto read = [&]() -> StatusOr<uint64_t> {
    if (options_.model.empty())
      return UsageError("no model given; give --model with a directory or a .gguf file");
    if (world_.stages > 1) LOCKSTEP_RETURN_IF_ERROR(CheckPipelineFiles(options_.model));
    LOCKSTEP_ASSIGN_OR_RETURN(
        *opened, OpenModelFiles(options_.model, {world_.rank_in_stage(), world_.shares},
                                options_.draft, *backend_, {world_.stage(), stage_shares}));
    return opened->checkpoint->Digest();
  };
  const StatusOr<uint64_t> digest = read();
  LOCKSTEP_RETURN_IF_ERROR(AgreeThatOk(*group_, *membership_, digest.status()));
  const Setting setting = {"model digest", absl::StrFormat("%016x", *digest),
                           "copy the same checkpoint to every node"};
  LOCKSTEP_RETURN_IF_ERROR(AgreeOnValue(*group_, *membership_, setting));
  // What was told to clients is of the first files.
  if (*digest != model_digest_.value_or(*digest)) {
    return ModelError("%s: the model is another one than when this session was opened; start anew",
                      options_.model);
  }
  model_digest_ = *digest;
  return OkStatus();
}

StatusOr<ModelLimits> OpenedSession::DecideLimits(const ModelConfig& config,
                                                  const SlicePlan& slice) {
  StatusOr<ModelLimits> limits =
      needs_.limits ? needs_.limits(config) : LimitsFromOptions(options_, config);
  LOCKSTEP_RETURN_IF_ERROR(AgreeThatOk(*group_, *membership_, limits.status()));
  if (options_.kv_cache_dtype != "auto") {
    // The option table allows no other names.
    LOCKSTEP_ASSIGN_OR_RETURN(limits->cache_type, kernels::CacheTypeOf(options_.kv_cache_dtype));
  }
  // Before the first step: the sizes of the probe's batches follow from them.
  const Setting sizes = {
      "limits",
      absl::StrFormat("%d rows, %d outputs, context %d", limits->max_rows, limits->max_outputs,
                      limits->max_model_len),
      "start all ranks for the same command with the same --max-model-len, --max-num-seqs and "
      "--prefill-chunk"};
  LOCKSTEP_RETURN_IF_ERROR(AgreeOnValue(*group_, *membership_, sizes));
  const size_t slot_bytes = StepSlotBytes(*group_, config, *limits);
  if (slot_bytes > kLargestSlotBytes) {
    return UsageError(
        "a step of %d rows exchanges %s at once, and %s is the most; lower "
        "--prefill-chunk",
        limits->max_rows, FormatBytes(slot_bytes), FormatBytes(kLargestSlotBytes));
  }
  limits->exchange_bytes =
      ExchangeBytes({options_, world_, *membership_, *group_}, config, *limits);
  const MemoryQuestion question{.config = config,
                                .limits = *limits,
                                .slice = slice,
                                .rank = world_.rank_in_stage(),
                                .threads = pool_->count(),
                                .available_bytes = memory_.host_bytes,
                                .device_bytes = memory_.device_bytes};
  const StatusOr<int64_t> blocks = FitKvBlocks(question);
  LOCKSTEP_RETURN_IF_ERROR(AgreeThatOk(*group_, *membership_, blocks.status()));
  LOCKSTEP_ASSIGN_OR_RETURN(limits->kv_blocks, AgreeOnSmallest(*group_, *blocks));
  if (world_.stages > 1) Report(DescribeStage(world_, slice.cuts.layers));
  const MemoryPlan plan = PlanMemory(config, slice, *limits, question.rank, question.threads);
  Report("memory: " + DescribePlan(plan, *limits) + " of " + FormatBytes(memory_.bytes()));
  return limits;
}

Status OpenedSession::OpenGroup(size_t slot_bytes) {
  LOCKSTEP_ASSIGN_OR_RETURN(std::unique_ptr<Group> group, membership_->OpenGroup(slot_bytes));
  LOCKSTEP_ASSIGN_OR_RETURN(group_, PrepareGroup(std::move(group), options_, *membership_));
  // Said once: the group may be opened again, and differently large.
  if (options_.sum_order == "any" && !group_->traits().any_order_is_fixed &&
      !std::exchange(told_any_order_, true)) {
    Report(
        absl::StrFormat("--sum-order any: %s adds as it likes, so that a row's bits may depend on "
                        "those beside it",
                        group_->traits().name));
  }
  return OkStatus();
}

Status OpenedSession::OpenStageGroup(size_t slot_bytes) {
  const int width = world_.stage_size();
  LOCKSTEP_ASSIGN_OR_RETURN(std::unique_ptr<Group> group,
                            membership_->OpenPartGroup(world_.stage() * width, width,
                                                       width == 1 ? kLoneSlotBytes : slot_bytes));
  LOCKSTEP_ASSIGN_OR_RETURN(stage_group_, PrepareGroup(std::move(group), options_, *membership_));
  return OkStatus();
}

StatusOr<int64_t> OpenedSession::OfRankZero(int64_t value) {
  LOCKSTEP_RETURN_IF_ERROR(Broadcast(*group_, std::as_writable_bytes(std::span(&value, 1)), 0));
  return value;
}

Status OpenedSession::StartOverlap() {
  // Ranks of one machine share its cores, and what they exchange does not travel far.
  const bool apart = membership_->local_size() < size() && !options_.mixed_kernels;
  const int64_t usual = apart ? 128 : 0;
  const int64_t wanted = options_.overlap_rows >= 0 ? options_.overlap_rows : usual;
  LOCKSTEP_ASSIGN_OR_RETURN(const int64_t rows, OfRankZero(wanted));
  model_->SetOverlap(rows);
  return OkStatus();
}

Status OpenedSession::LoadWeights(const OpenedModel& opened, const ModelLimits& limits) {
  ProgressReport::Style style;
  style.terminal = rank() == 0 && isatty(STDERR_FILENO) != 0;
  if (rank() != 0) style.quiet_ms = style.line_every_ms = style.line_at_least_ms = 10'000;
  const std::string what = size() == 1 ? "loading" : absl::StrFormat("rank %d: loading", rank());
  ProgressReport progress(what, style,
                          [](const std::string& text) { std::fputs(text.c_str(), stderr); });
  LoadOptions load;
  load.shares = world_.shares;  // LoadModel takes the stage from `opened`
  load.limits = limits;
  load.draft_layer = options_.draft;
  load.share_choices = options_.mixed_kernels;
  if (options_.log_level == "info" || options_.log_level == "debug") {
    load.progress = [&](const LoadProgress& done) {
      progress.Update(done.bytes_done, done.bytes_total, NowNs());
    };
  }
  const uint64_t memory_rate = needs_.measure_memory ? MemoryRate(*pool_) : 0;
  const int64_t start_ns = NowNs();
  StatusOr<std::unique_ptr<Model>> model =
      LoadModel(opened, load, stage_group(), *backend_, *pool_);
  progress.Finish();
  LOCKSTEP_RETURN_IF_ERROR(model.status());
  model_ = std::move(model).value();
  load_seconds_ = static_cast<double>(NowNs() - start_ns) * 1e-9;
  membership_->meter().SetLoaded({.memory_rate = memory_rate,
                                  .weight_bytes = model_->memory().weight_bytes,
                                  .token_bytes = model_->bytes_per_token(),
                                  .kv_bytes = model_->memory().kv_bytes,
                                  .planned_bytes = model_->memory().lasting(),
                                  .threads = static_cast<uint32_t>(pool_->count())});
  const auto bytes = static_cast<double>(model_->bytes_read());
  Report(absl::StrFormat("loaded %s in %.2f s (%.2f GB/s)", FormatBytes(model_->bytes_read()),
                         load_seconds_, bytes / std::max(load_seconds_, 1e-9) * 1e-9));
  return WaitForSlowDisks(*group_);
}

Status OpenedSession::Load() {
  const InterruptScope interrupts([this] { membership_->Abort(InterruptedError()); });
  OpenedModel opened;
  if (const Status checked = CheckModel(&opened); !checked.ok()) return TellAll(checked);
  if (const Status files = CheckFiles(opened); !files.ok()) return TellAll(files);
  const StatusOr<ModelLimits> limits = DecideLimits(opened.config, opened.slice);
  if (!limits.ok()) return TellAll(limits.status());
  // Its slots may be too small for a step.
  const size_t slot_bytes = StepSlotBytes(*group_, opened.config, *limits);
  if (world_.stages > 1) {
    LOCKSTEP_RETURN_IF_ERROR(OpenStageGroup(slot_bytes));
  } else if (size() > 1 && slot_bytes > group_->traits().slot_bytes) {
    LOCKSTEP_RETURN_IF_ERROR(OpenGroup(slot_bytes));
  }
  // A fault here strikes one rank alone, while the others wait for its part.
  const Status loaded = LoadWeights(opened, *limits);
  if (!loaded.ok()) return TellAll(loaded);
  LOCKSTEP_RETURN_IF_ERROR(CheckProbe(*opened.checkpoint));
  Status started = StartWire();
  if (started.ok()) started = StartOverlap();
  return started.ok() ? started : TellAll(started);
}

Status OpenedSession::CheckFiles(const OpenedModel& opened) {
  if (!needs_.check_files) return OkStatus();
  const Status mine = needs_.check_files(opened);
  LOCKSTEP_RETURN_IF_ERROR(WaitForSlowDisks(*group_));
  return AgreeThatOk(*group_, *membership_, mine);
}

Status OpenedSession::CheckProbe(const Checkpoint& checkpoint) {
  if (!checkpoint.is_of_one_rank()) return OkStatus();
  LOCKSTEP_ASSIGN_OR_RETURN(files_settings_, checkpoint.Digest());
  if (!needs_.probe) return OkStatus();
  const Status checked = CheckProbeAtStart(*this);
  return checked.ok() ? checked : TellAll(checked);
}

Status OpenedSession::StartWire() {
  // The option table allows no other names.
  LOCKSTEP_ASSIGN_OR_RETURN(const WireFormat wire, WireFormatOf(options_.wire));
  if (size() == 1 || wire == WireFormat::kF32) return OkStatus();
  // Blocks would reach from row to row, and a row's bits depend on those beside it.
  if (const int64_t width = model_->config().hidden_size; width % int64_t{kWireBlock} != 0) {
    return UsageError(
        "--wire %s needs a hidden_size that is a multiple of %d, and the model's is "
        "%d; use --wire f32",
        options_.wire, kWireBlock, width);
  }
  return MeasureWire(*this, wire);
}

void OpenedSession::Report(const std::string& text) const {
  const bool watched = rank() == 0 || world_.origin == WorldOrigin::kNodes;
  const log::Level level = watched ? log::Level::kInfo : log::Level::kDebug;
  if (log::Enabled(level)) log::Write(level, text);
}

Status OpenedSession::TellAll(const Status& status) {
  if (membership_->Health().ok()) membership_->Abort(status);
  return status;
}

void OpenedSession::GiveUp(const Status& why) {
  if (membership_ != nullptr && !why.ok()) (void)TellAll(why);
  model_.reset();
  stage_group_.reset();
  group_.reset();
  membership_.reset();
}

Status OpenedSession::Reopen(const Status& why) {
  if (rank() == 0 || world_.origin == WorldOrigin::kNodes)
    log::Warning("%s; --recover: forming the group again", MessageOf(why));
  GiveUp(why);
  if (rank() != 0 && options_.circuit_failures > 0) patience_ms_ = options_.circuit_longest_wait_ms;
  if (spawned_ != nullptr)
    LOCKSTEP_RETURN_IF_ERROR(spawned_->Restart(LostRank(why), options_.start_timeout_ms));
  LOCKSTEP_RETURN_IF_ERROR(Join());
  return Load();
}

Status OpenedSession::Close(const Status& status) {
  if (closed_) return status;
  closed_ = true;
  const Status final = FinalStatus(status);
  // Rank 0 shares the terminal and prints the same sentence.
  if (world_.origin == WorldOrigin::kSpawned && membership_ != nullptr) SilenceFinalError();
  // Before the teardown, during which mpirun may kill this process.
  TellFinalError(final);
  if (membership_ != nullptr && final.ok()) membership_->Leave();
  GiveUp(final);
  if (spawned_ != nullptr) spawned_->Finish(final.ok() ? kOrderlyEndMs : kFaultyEndMs);
  return final;
}

}  // namespace

StatusOr<std::unique_ptr<Session>> OpenSession(const Options& options, const SessionNeeds& needs) {
  auto session = std::make_unique<OpenedSession>(options, needs);
  Status status = session->Enter();
  if (status.ok()) status = session->Join();
  if (status.ok() && needs.model) status = session->Load();
  if (!status.ok()) return session->Close(status);
  return session;
}

StatusOr<int64_t> MaxModelLen(const Options& options, const ModelConfig& config) {
  const int64_t positions = config.max_position_embeddings;
  if (options.max_model_len > positions) {
    return UsageError("--max-model-len is %d, but the model has %d positions",
                      options.max_model_len, positions);
  }
  return options.max_model_len > 0 ? options.max_model_len
                                   : std::min(positions, kDefaultMaxModelLen);
}

StatusOr<ModelLimits> LimitsFromOptions(const Options& options, const ModelConfig& config) {
  ModelLimits limits;
  LOCKSTEP_ASSIGN_OR_RETURN(limits.max_model_len, MaxModelLen(options, config));
  limits.max_rows = options.prefill_chunk + options.max_num_seqs;
  limits.max_outputs = options.max_num_seqs;
  limits.kv_blocks =
      (limits.max_model_len + kBlockTokens - 1) / kBlockTokens * options.max_num_seqs;
  return limits;
}

}  // namespace lockstep
