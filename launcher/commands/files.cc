// `lockstep files`: the files of a directory for nodes without a shared disk.
#include <algorithm>
#include <chrono>
#include <map>
#include <thread>

#include "collectives/bootstrap.h"
#include "launcher/commands/commands.h"
#include "launcher/commands/source_probe.h"
#include "launcher/files/file_server.h"
#include "launcher/probe.h"
#include "launcher/process.h"
#include "launcher/progress.h"
#include "runtime/base/log.h"
#include "runtime/base/os.h"
#include "runtime/model/model.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/shard_file.h"
#include "transport/socket.h"

namespace lockstep {
namespace {

std::string Unserved(const std::vector<std::string>& names) {
  std::string list;
  for (const std::string& name : names) list += (list.empty() ? "'" : ", '") + name + "'";
  return absl::StrFormat("%s left out, since a name may have %s alone; rename %s", list,
                         kServedCharacters, names.size() == 1 ? "it" : "them");
}

// probe.json of the checkpoint itself, for those who fetch their slices of it.
StatusOr<std::string> ProbeOfServed(const Options& options) {
  const StatusOr<std::unique_ptr<Checkpoint>> opened = Checkpoint::Open(options.model);
  if (!opened.ok())
    return Annotate(opened.status(), "for --record DIR must hold one whole checkpoint");
  const std::unique_ptr<Checkpoint>& source = *opened;
  LOCKSTEP_ASSIGN_OR_RETURN(const ModelConfig config, ConfigOf(*source));
  ProbeQuestion question;
  LOCKSTEP_ASSIGN_OR_RETURN(question.settings, source->Digest());
  question.threads = static_cast<int>(os::AllowedCpus().size());
  std::string too_large;
  LOCKSTEP_ASSIGN_OR_RETURN(const std::optional<ProbeRecord> record,
                            ProbeSource(*source, std::move(question), options, &too_large));
  if (!record.has_value())
    return UsageError("--record: the probe prompt cannot be computed here: %s", too_large);
  WarnOfFastActivations(*record);
  return ProbeText(*record, config.vocab_size);
}

}  // namespace

Status FilesCommand(const Options& options) {
  if (options.model.empty())
    return UsageError("a directory is needed: lockstep files DIR [--host ADDRESS] [--port N]");
  FileServerOptions serving;
  serving.directory = options.model;
  serving.host = options.host;
  serving.port = options.port;
  if (!options.secret_file.empty()) {
    LOCKSTEP_ASSIGN_OR_RETURN(serving.secret, ReadSecretFile(options.secret_file));
  }
  std::vector<std::string> unserved;
  LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<ModelFile> files,
                            ListModelFiles(options.model, &unserved));
  if (files.empty()) {
    return ModelError(
        "%s: holds no file of a model (*.safetensors, *.gguf, rank-R-of-N.lockstep, config.json)%s",
        options.model, unserved.empty() ? "" : " that can be served: " + Unserved(unserved));
  }
  if (!unserved.empty()) log::Warning("%s: %s", options.model, Unserved(unserved));
  uint64_t bytes = 0;
  for (const ModelFile& file : files) bytes += file.bytes;
  const InterruptScope interrupts;
  const bool of_ranks = std::any_of(files.begin(), files.end(), [](const ModelFile& file) {
    return file.name.ends_with(kShardSuffix);
  });
  if (options.record && of_ranks) {
    return UsageError(
        "--record: %s holds files of ranks, which bring their probe prompt along; leave it out",
        options.model);
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<FileServer> server, FileServer::Listen(serving));
  std::map<std::string, std::string> texts;
  if (options.record) {
    LOCKSTEP_ASSIGN_OR_RETURN(texts[kProbeName], ProbeOfServed(options));
  }
  server->Serve(std::move(texts));
  const std::string url = "http://" + Endpoint{options.host, server->port()}.Text();
  log::Info("serving %d files (%s) of %s at %s", files.size(), FormatBytes(bytes), options.model,
            url);
  log::Info(
      "a rank fetches what it needs with: lockstep shard --from %s --ranks N --rank R%s --out DIR",
      url, serving.secret.empty() ? "" : " --secret-file FILE");
  if (!options.record && !of_ranks) {
    log::Info(
        "with --record the probe prompt is computed before, and tells everyone who fetches slices "
        "of this checkpoint whether they give the right text");
  }
  while (!Interrupted()) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  log::Info("ending: %d requests, %s sent", server->requests(), FormatBytes(server->bytes_sent()));
  return OkStatus();
}

}  // namespace lockstep
