#include "launcher/probe.h"

#include <algorithm>
#include <utility>

#include "collectives/bootstrap.h"
#include "collectives/group.h"
#include "launcher/agree.h"
#include "launcher/progress.h"
#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/log.h"
#include "runtime/base/thread_pool.h"
#include "runtime/model/layer_walk.h"

namespace lockstep {
namespace {

// Beyond this a narrow wire is worth a warning: as far as one row's choice of experts may turn.
constexpr double kFarByWire = 0.25;

// A process as a group of its own.
struct Alone {
  std::unique_ptr<Membership> membership;
  std::unique_ptr<Group> group;
};

StatusOr<Alone> BeAlone() {
  Alone alone;
  LOCKSTEP_ASSIGN_OR_RETURN(alone.membership, Bootstrap({}));
  LOCKSTEP_ASSIGN_OR_RETURN(alone.group, alone.membership->OpenGroup());
  return alone;
}

// Whether 8-bit activations would change anything.
bool HasQuantizedProducts(const Checkpoint& checkpoint) {
  return std::any_of(checkpoint.tensors().begin(), checkpoint.tensors().end(),
                     [](const auto& entry) {
                       const WeightFormat& format = entry.second.format;
                       return !format.plain() && format.encoding != Encoding::kFp8;
                     });
}

}  // namespace

StatusOr<std::optional<ProbeRecord>> ReadProbe(Session& session) {
  const std::string path = session.options().model + "/" + kProbeName;
  std::vector<std::byte> message;  // a byte that says whether there is one, then the file
  Status read = OkStatus();
  if (session.rank() == 0) {
    std::string text = "-";
    if (FileExists(path)) {
      StatusOr<std::string> file = ReadTextFile(path, kMostProbeBytes, ErrorKind::kModel);
      read = file.status();
      if (read.ok()) text = "+" + *file;
    }
    const auto bytes = std::as_bytes(std::span(text));
    message.assign(bytes.begin(), bytes.end());
  }
  LOCKSTEP_RETURN_IF_ERROR(AgreeThatOk(session.group(), session.membership(), read));
  LOCKSTEP_RETURN_IF_ERROR(BroadcastMessage(session.group(), &message, 0, Patience::kStep));
  const std::string text(reinterpret_cast<const char*>(message.data()), message.size());
  if (text.empty() || text[0] != '+') return std::optional<ProbeRecord>();
  LOCKSTEP_ASSIGN_OR_RETURN(ProbeRecord record,
                            ParseProbe(text.substr(1), session.model().config().vocab_size, path));
  if (record.settings == session.files_settings()) return std::optional<ProbeRecord>(record);
  return ModelError(
      "%s: is of other files than those beside it (settings %016x and %016x); copy the files of "
      "one lockstep shard together, or record the probe of these: %s",
      path, record.settings, session.files_settings().value_or(0),
      RecordCommand(session.options().model, session.shares()));
}

std::string RecordCommand(std::string_view directory, const std::vector<double>& shares) {
  std::string command = absl::StrFormat("lockstep verify --model %s", directory);
  if (shares.size() > 1) command += absl::StrFormat(" --ranks %d", shares.size());
  const bool even = std::all_of(shares.begin(), shares.end(),
                                [&](double share) { return share == shares.front(); });
  if (!even) command += " --shares " + FormatShares(shares);
  return command + " --exact --record";
}

void WarnOfFastActivations(const ProbeRecord& record) {
  const double allowed = ToleranceOf(record, {.precision = kernels::Precision::kFast}).far;
  if (record.fast_distance.value_or(0) <= allowed) return;
  log::Warning(
      "8-bit activations do not compute this model: they move the logits of the probe prompt by "
      "%.2g of their deviation (at most %.2g is let pass), so starts without --exact will be "
      "refused; use --exact",
      *record.fast_distance, allowed);
}

ProbeArithmetic ArithmeticOf(Session& session) {
  return {.precision = session.precision(), .cache = session.model().limits().cache_type};
}

Status CheckProbeAtStart(Session& session) {
  const int64_t start_ns = NowNs();
  LOCKSTEP_ASSIGN_OR_RETURN(const std::optional<ProbeRecord> record, ReadProbe(session));
  const std::string path = session.options().model + "/" + kProbeName;
  if (!record.has_value()) {
    if (session.rank() == 0) {
      log::Warning(
          "%s: missing, so nothing tells whether these files give the right text; record it: %s",
          path, RecordCommand(session.options().model, session.shares()));
    }
    return OkStatus();
  }
  if (session.model().limits().max_model_len < kProbeTokens) {
    if (session.rank() == 0) log::Warning("the probe prompt is longer than --max-model-len");
    return OkStatus();
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const ProbeDigest computed,
                            ComputeProbe(session.model(), session.group()));
  LOCKSTEP_RETURN_IF_ERROR(CompareProbe(*record, computed, ArithmeticOf(session), path));
  if (session.rank() == 0) {
    log::Info("the probe prompt gives the recorded logits (%.1f s)",
              static_cast<double>(NowNs() - start_ns) * 1e-9);
  }
  return OkStatus();
}

Status MeasureWire(Session& session, WireFormat wire) {
  Model& model = session.model();
  const bool measured = model.limits().max_model_len >= kProbeTokens;
  ProbeDigest before, after;
  if (measured) {
    LOCKSTEP_ASSIGN_OR_RETURN(before, ComputeProbe(model, session.group()));
  }
  model.SetWire(wire);
  if (measured) {
    StatusOr<ProbeDigest> computed = ComputeProbe(model, session.group());
    if (!computed.ok()) {
      return Annotate(computed.status(),
                      absl::StrFormat("with sums as %s (--wire f32 rounds nothing)", NameOf(wire)));
    }
    after = *std::move(computed);
  }
  if (session.rank() != 0) return OkStatus();
  if (!measured) {
    log::Warning(
        "sums travel as %s; the probe prompt is longer than --max-model-len, so what that "
        "does to logits is not measured",
        NameOf(wire));
    return OkStatus();
  }
  const std::vector<double> distances = ProbeDistances(before, after);
  int same = 0;
  for (size_t i = 0; i < before.size(); ++i)
    same += before[i].top[0].first == after[i].top[0].first ? 1 : 0;
  const double farthest = *std::max_element(distances.begin(), distances.end());
  log::Write(farthest > kFarByWire ? log::Level::kWarning : log::Level::kInfo,
             absl::StrFormat("sums travel as %s: the probe prompts' logits move by %.2g of their "
                             "deviation at most, and %d of %d best tokens stay",
                             NameOf(wire), farthest, same, before.size()));
  return OkStatus();
}

StatusOr<std::optional<ProbeRecord>> ComputeSourceProbe(const Checkpoint& source,
                                                        const ProbeQuestion& question,
                                                        std::string* too_large) {
  using kernels::Precision;
  const auto checkpoint = WithFormats(source, question.formats);
  LOCKSTEP_ASSIGN_OR_RETURN(const auto exact,
                            kernels::MakeBackend(question.kernels, Precision::kExact));
  LOCKSTEP_ASSIGN_OR_RETURN(const auto fast,
                            kernels::MakeBackend(question.kernels, Precision::kFast));
  LayerWalkOptions options;
  options.limits = ProbeLimits();
  options.backends = {exact.get()};
  if (HasQuantizedProducts(*checkpoint)) options.backends.push_back(fast.get());
  options.threads = question.threads;
  options.progress = question.progress;
  options.stop = question.stop;
  LOCKSTEP_ASSIGN_OR_RETURN(const LayerWalk walk, LayerWalk::Plan(*checkpoint, std::move(options)));
  const LayerWalkPlan& plan = walk.plan();
  if (question.available_bytes > 0 && plan.memory_bytes > question.available_bytes) {
    *too_large = absl::StrFormat("it needs %s, with %s of the model in memory, and there are %s",
                                 FormatBytes(plan.memory_bytes), plan.largest_part,
                                 FormatBytes(question.available_bytes));
    return std::optional<ProbeRecord>();
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const Alone alone, BeAlone());
  ThreadPool pool(question.threads);
  const int64_t vocab_size = walk.config().vocab_size;
  LOCKSTEP_ASSIGN_OR_RETURN(const auto logits,
                            walk.Run(ProbeBatch(vocab_size), *alone.group, pool));
  alone.membership->Leave();
  ProbeRecord record;
  record.settings = question.settings;
  record.from_source = true;
  record.computed = "from the source as one rank, " + exact->name();
  LOCKSTEP_ASSIGN_OR_RETURN(record.rows, DigestProbe(logits.front(), vocab_size));
  // The same if no product is quantized.
  LOCKSTEP_ASSIGN_OR_RETURN(const ProbeDigest of_fast, DigestProbe(logits.back(), vocab_size));
  const std::vector<double> distances = ProbeDistances(record.rows, of_fast);
  record.fast_distance = *std::max_element(distances.begin(), distances.end());
  return std::optional<ProbeRecord>(record);
}

}  // namespace lockstep
