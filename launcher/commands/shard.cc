// `lockstep shard`: a checkpoint to one file per rank.
#include <signal.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <string>

#include "launcher/commands/commands.h"
#include "launcher/commands/source_probe.h"
#include "launcher/files/shard_source.h"
#include "launcher/probe.h"
#include "launcher/process.h"
#include "launcher/progress.h"
#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/gguf.h"
#include "runtime/base/log.h"
#include "runtime/base/os.h"
#include "runtime/model/model.h"
#include "runtime/model/shard_plan.h"
#include "runtime/weights/shard_file.h"
#include "runtime/weights/sharder.h"

namespace lockstep {
namespace {

// Beyond this disks and memory are busy.
constexpr size_t kMostThreads = 16;

StatusOr<std::vector<double>> SharesOf(const Options& options) {
  const int64_t ranks =
      options.ranks > 0 ? options.ranks : static_cast<int64_t>(options.shares.size());
  if (ranks == 0)
    return UsageError("--ranks is needed: for how many ranks the files shall be made");
  return ValidateShares(options.shares, static_cast<int>(ranks));
}

// The directory that holds the files of the model.
std::string SourceDirectory(const std::string& model) {
  if (IsDirectory(model)) return model;
  const std::string parent = std::filesystem::path(model).parent_path().string();
  return parent.empty() ? "." : parent;
}

// Tokenizer and templates go along, so that the directory alone can be served. A GGUF file has its
// own in its metadata, unless it was made without; then it uses the tokenizer.json beside it.
Status CopyText(const Options& options) {
  const std::string to = options.out + "/";
  std::vector<const char*> names(std::begin(kModelTexts), std::end(kModelTexts));
  if (IsGgufModel(options.model)) {
    LOCKSTEP_ASSIGN_OR_RETURN(const Gguf gguf, OpenGgufFiles(options.model));
    const std::string text = GgufMetadataText(gguf.metadata);
    LOCKSTEP_RETURN_IF_ERROR(
        WriteFileAtomically(to + "tokenizer.gguf", std::as_bytes(std::span(text))));
    names = {"tokenizer.json"};
  }
  for (const char* name : names) {
    const std::string from = SourceDirectory(options.model) + "/" + name;
    if (!FileExists(from)) continue;
    LOCKSTEP_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(from));
    LOCKSTEP_RETURN_IF_ERROR(WriteFileAtomically(to + name, std::as_bytes(std::span(text))));
  }
  return OkStatus();
}

// What can be said before a server is asked.
Status CheckFlags(const Options& options) {
  if (options.model.empty() && options.from.empty())
    return UsageError("--model (a checkpoint directory or a .gguf file) or --from URL is needed");
  if (options.out.empty()) return UsageError("--out is needed: a directory for the files");
  if (options.ranks > 0 && options.rank >= options.ranks)
    return UsageError("--rank %d: there are ranks 0 to %d", options.rank, options.ranks - 1);
  return OkStatus();
}

Status CheckOut(const Options& options) {
  std::error_code absent;  // --out need not be there yet
  if (std::filesystem::equivalent(options.out, SourceDirectory(options.model), absent)) {
    return UsageError("--out %s holds --model itself; give the files a directory of their own",
                      options.out);
  }
  return OkStatus();
}

int ThreadsOf(const Options& options, bool remote) {
  // Further threads would only wait for a connection.
  if (remote && options.threads > kRemoteThreads) return kRemoteThreads;
  if (options.threads > 0) return static_cast<int>(options.threads);
  if (remote) return kRemoteThreads;
  return static_cast<int>(std::clamp(os::AllowedCpus().size(), size_t{1}, kMostThreads));
}

void Report(const ShardResult& result, const std::vector<std::string>& left_out,
            const ShardOptions& shard) {
  if (!left_out.empty()) {
    log::Info("left out: %d tensors of layers for drafts (MTP), %s among them", left_out.size(),
              left_out.front());
  }
  if (result.tensors_kept > 0) {
    log::Info("%d of %d tensors were there from an earlier start", result.tensors_kept,
              result.tensors);
  }
  for (size_t i = 0; i < result.file_bytes.size(); ++i) {
    const int rank = shard.only_rank >= 0 ? shard.only_rank : static_cast<int>(i);
    log::Info("%s/%s: %s", shard.directory, ShardName(rank, static_cast<int>(shard.shares.size())),
              FormatBytes(result.file_bytes[i]));
  }
}

// Whether probe.json in --out is of these files and need not be written again. One of others is
// taken away: every start would refuse it.
StatusOr<bool> RecordIsThere(const Options& options, const ModelConfig& config,
                             const ShardResult& result) {
  const std::string path = options.out + "/" + kProbeName;
  if (!FileExists(path)) return false;
  LOCKSTEP_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path));
  const StatusOr<ProbeRecord> there = ParseProbe(text, config.vocab_size, path);
  const bool of_these_files = there.ok() && there->settings == result.settings;
  std::error_code error;
  if (!of_these_files) std::filesystem::remove(path, error);
  // What a cluster recorded is better than nothing, until it can be replaced.
  return of_these_files && (there->from_source || !options.record);
}

// The logits of the probe prompt, computed from the source and not from what was written.
Status RecordProbe(const Options& options, const Checkpoint& source, const ModelConfig& config,
                   const ShardResult& result, const ShardOptions& shard) {
  const std::string path = options.out + "/" + kProbeName;
  ProbeQuestion question;
  question.formats = result.formats;
  question.settings = result.settings;
  question.threads = shard.threads;
  std::string too_large;
  const int64_t start_ns = NowNs();
  LOCKSTEP_ASSIGN_OR_RETURN(const std::optional<ProbeRecord> record,
                            ProbeSource(source, std::move(question), options, &too_large));
  if (!record.has_value()) {
    if (options.record)
      return UsageError("--record: the probe prompt cannot be computed here: %s", too_large);
    log::Warning("no probe prompt recorded: %s; record it where the files are used: %s", too_large,
                 RecordCommand(options.out, shard.shares));
    return OkStatus();
  }
  const std::string text = ProbeText(*record, config.vocab_size);
  LOCKSTEP_RETURN_IF_ERROR(WriteFileAtomically(path, std::as_bytes(std::span(text))));
  log::Info("%s: the logits of the probe prompt (%.1f s)", path,
            static_cast<double>(NowNs() - start_ns) * 1e-9);
  WarnOfFastActivations(*record);
  return OkStatus();
}

// What the server computed of the checkpoint that it serves (`lockstep files --record`): the files
// are another cut of the same weights. Nothing if it did not, and a warning if it says nothing of
// this checkpoint.
std::optional<ProbeRecord> ProbeOfServer(const Options& options, const ModelConfig& config,
                                         const ShardResult& result) {
  const std::string from = SourceDirectory(options.model) + "/" + kProbeName;
  if (!result.formats.empty() || !FileExists(from)) return std::nullopt;
  const StatusOr<std::string> text = ReadTextFile(from, kMostProbeBytes, ErrorKind::kModel);
  const StatusOr<ProbeRecord> record =
      text.ok() ? ParseProbe(*text, config.vocab_size, from) : text.status();
  if (record.ok() && record->settings == result.source && record->from_source) return *record;
  log::Warning("the server's probe prompt is not used: %s",
               record.ok() ? from + ": is of another checkpoint than the files beside it"
                           : MessageOf(record.status()));
  return std::nullopt;
}

// Writes it for these files; whether there is one.
StatusOr<bool> TakeProbe(const Options& options, const ModelConfig& config,
                         const ShardResult& result) {
  std::optional<ProbeRecord> record = ProbeOfServer(options, config, result);
  if (!record.has_value()) return false;
  record->settings = result.settings;
  const std::string path = options.out + "/" + kProbeName;
  const std::string text = ProbeText(*record, config.vocab_size);
  LOCKSTEP_RETURN_IF_ERROR(WriteFileAtomically(path, std::as_bytes(std::span(text))));
  log::Info("%s: the logits of the probe prompt, as the server computed them", path);
  WarnOfFastActivations(*record);
  return true;
}

// `remote`: where the source is, if it is not here.
Status ShardFrom(const Options& options, const ShardSource* remote) {
  LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<double> shares, SharesOf(options));
  if (options.rank >= static_cast<int64_t>(shares.size()))
    return UsageError("--rank %d: there are ranks 0 to %d", options.rank, shares.size() - 1);
  LOCKSTEP_ASSIGN_OR_RETURN(const auto source, Checkpoint::Open(options.model));
  LOCKSTEP_ASSIGN_OR_RETURN(const ModelConfig config, ConfigOf(*source));
  ShardOptions shard;
  LOCKSTEP_ASSIGN_OR_RETURN(shard.formats, QuantizedFormats(config, *source, options.quantize));
  const auto target = WithFormats(*source, shard.formats);
  std::vector<std::string> left_out;
  LOCKSTEP_ASSIGN_OR_RETURN(shard.slices, PlanShards(config, *target, shares, &left_out));
  shard.directory = options.out;
  shard.shares = shares;
  shard.only_rank = static_cast<int>(options.rank);
  shard.threads = ThreadsOf(options, remote != nullptr);
  shard.stop = Interrupted;
  ProgressReport progress("sharding");
  if (options.log_level == "info" || options.log_level == "debug") {
    shard.progress = [&progress](uint64_t done, uint64_t total) {
      progress.Update(done, total, NowNs());
    };
  }
  const StatusOr<ShardResult> result = WriteShards(*source, shard);
  progress.Finish();
  LOCKSTEP_RETURN_IF_ERROR(result.status());
  LOCKSTEP_RETURN_IF_ERROR(CopyText(options));
  Report(*result, left_out, shard);
  LOCKSTEP_ASSIGN_OR_RETURN(const bool recorded, RecordIsThere(options, config, *result));
  if (recorded) return OkStatus();
  // Unasked only where all of the source is near: the probe prompt reads it once more.
  if (options.record || (remote == nullptr && shard.only_rank < 0))
    return RecordProbe(options, *source, config, *result, shard);
  if (remote != nullptr) {
    LOCKSTEP_ASSIGN_OR_RETURN(const bool taken, TakeProbe(options, config, *result));
    if (taken) return OkStatus();
  }
  log::Warning(
      "no probe prompt recorded, so nothing will tell whether these files give the right text: "
      "%ssay --record here, which reads all of the source, or record it where the files are used: "
      "%s",
      remote == nullptr || !result->formats.empty() ? "" : "start lockstep files with --record, ",
      RecordCommand(options.out, shares));
  return OkStatus();
}

}  // namespace

Status ShardCommand(const Options& given) {
  // A limit on file sizes is then an error of a write, with a sentence.
  (void)signal(SIGXFSZ, SIG_IGN);
  const InterruptScope interrupts;
  LOCKSTEP_RETURN_IF_ERROR(CheckFlags(given));
  LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<ShardSource> remote, ShardSource::Connect(given));
  Options options = given;
  if (remote != nullptr) options.model = remote->model();
  LOCKSTEP_RETURN_IF_ERROR(CheckOut(options));
  const bool made = remote != nullptr && remote->holds_shards();
  const Status status = made ? CopyShards(options, options.model, ThreadsOf(options, true))
                             : ShardFrom(options, remote.get());
  if (status.ok() && remote != nullptr) remote->Report();
  return status;
}

}  // namespace lockstep
