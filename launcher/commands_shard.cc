// `lockstep shard`: a checkpoint to one file per rank.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <string>

#include "launcher/commands.h"
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
  std::vector<const char*> names = {"config.json", "tokenizer.json", "tokenizer_config.json",
                                    "chat_template.jinja", "generation_config.json"};
  if (IsGgufModel(options.model)) {
    LOCKSTEP_ASSIGN_OR_RETURN(const Gguf gguf, OpenGgufFiles(options.model));
    const std::string text = GgufMetadataFile(gguf.metadata);
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

Status CheckOut(const Options& options) {
  if (options.model.empty())
    return UsageError("--model is needed: a checkpoint directory or a .gguf file");
  if (options.out.empty()) return UsageError("--out is needed: a directory for the files");
  std::error_code absent;  // --out need not be there yet
  if (std::filesystem::equivalent(options.out, SourceDirectory(options.model), absent)) {
    return UsageError("--out %s holds --model itself; give the files a directory of their own",
                      options.out);
  }
  return OkStatus();
}

void Report(const ShardResult& result, const std::vector<std::string>& left_out,
            const std::string& directory) {
  if (!left_out.empty()) {
    log::Info("left out: %d tensors of layers for drafts (MTP), %s among them", left_out.size(),
              left_out.front());
  }
  if (result.tensors_kept > 0) {
    log::Info("%d of %d tensors were there from an earlier start", result.tensors_kept,
              result.tensors);
  }
  for (size_t rank = 0; rank < result.file_bytes.size(); ++rank) {
    const auto ranks = static_cast<int>(result.file_bytes.size());
    log::Info("%s/%s: %s", directory, ShardName(static_cast<int>(rank), ranks),
              FormatBytes(result.file_bytes[rank]));
  }
}

}  // namespace

Status ShardCommand(const Options& options) {
  LOCKSTEP_RETURN_IF_ERROR(CheckOut(options));
  LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<double> shares, SharesOf(options));
  // A limit on file sizes is then an error of a write, with a sentence.
  (void)signal(SIGXFSZ, SIG_IGN);
  LOCKSTEP_ASSIGN_OR_RETURN(const auto source, Checkpoint::Open(options.model));
  LOCKSTEP_ASSIGN_OR_RETURN(const ModelConfig config, ConfigOf(*source));
  ShardOptions shard;
  LOCKSTEP_ASSIGN_OR_RETURN(shard.formats, QuantizedFormats(config, *source, options.quantize));
  const auto target = WithFormats(*source, shard.formats);
  std::vector<std::string> left_out;
  LOCKSTEP_ASSIGN_OR_RETURN(shard.slices, PlanShards(config, *target, shares, &left_out));
  shard.directory = options.out;
  shard.shares = shares;
  shard.threads =
      options.threads > 0
          ? static_cast<int>(options.threads)
          : static_cast<int>(std::clamp(os::AllowedCpus().size(), size_t{1}, kMostThreads));
  const InterruptScope interrupts;
  shard.stop = Interrupted;
  ProgressReport::Style style;
  style.terminal = isatty(STDERR_FILENO) != 0;
  ProgressReport progress("sharding", style,
                          [](const std::string& text) { std::fputs(text.c_str(), stderr); });
  if (options.log_level == "info" || options.log_level == "debug") {
    shard.progress = [&progress](uint64_t done, uint64_t total) {
      progress.Update(done, total, NowNs());
    };
  }
  const StatusOr<ShardResult> result = WriteShards(*source, shard);
  progress.Finish();
  LOCKSTEP_RETURN_IF_ERROR(result.status());
  LOCKSTEP_RETURN_IF_ERROR(CopyText(options));
  Report(*result, left_out, options.out);
  return OkStatus();
}

}  // namespace lockstep
