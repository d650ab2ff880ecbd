// `lockstep files`: the files of a directory for nodes without a shared disk.
#include <chrono>
#include <thread>

#include "collectives/bootstrap.h"
#include "launcher/commands/commands.h"
#include "launcher/file_server.h"
#include "launcher/process.h"
#include "launcher/progress.h"
#include "runtime/base/log.h"
#include "transport/socket.h"

namespace lockstep {
namespace {

std::string Unserved(const std::vector<std::string>& names) {
  std::string list;
  for (const std::string& name : names) list += (list.empty() ? "'" : ", '") + name + "'";
  return absl::StrFormat("%s left out, since a name may have %s alone; rename %s", list,
                         kServedCharacters, names.size() == 1 ? "it" : "them");
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
  LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<FileServer> server, FileServer::Start(serving));
  const std::string url = "http://" + Endpoint{options.host, server->port()}.Text();
  log::Info("serving %d files (%s) of %s at %s", files.size(), FormatBytes(bytes), options.model,
            url);
  log::Info(
      "a rank fetches what it needs with: lockstep shard --from %s --ranks N --rank R%s --out "
      "DIR",
      url, serving.secret.empty() ? "" : " --secret-file FILE");
  while (!Interrupted()) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  log::Info("ending: %d requests, %s sent", server->requests(), FormatBytes(server->bytes_sent()));
  return OkStatus();
}

}  // namespace lockstep
