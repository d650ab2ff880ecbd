// Serves the files of a checkpoint, or of a directory that `lockstep shard` made, by HTTP ranges.
//
//     GET /          {"lockstep": "files", "files": [{"name": ..., "bytes": ...}, ...]}
//     GET /NAME      the file, or with "Range: bytes=first-last" (or "first-", "-count") that part,
//                    or with "Range: strided=first-bytes-stride-count" those pieces, one behind
//                    the other (runtime/weights/http_answer.h)
//     HEAD of both   the same without the body
//
// Served are regular files directly in the directory whose names are those of models: *.safetensors
// and their index, *.gguf, rank-R-of-N.lockstep, and the small ones beside them (config.json,
// tokenizer.json, chat_template.jinja, ...). Links to regular files count as files, wherever they
// lead: Hugging Face's cache consists of them, and whoever can make a link there can also copy.
// Everything else is "not found": other names, dot files, folders, unfinished files.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/status.h"

namespace lockstep {

struct FileServerOptions {
  std::string directory;
  std::string host = "127.0.0.1";
  int64_t port = 0;  // 0: a free one
  // Requests must prove it by FileToken. Empty: nothing is asked, but then only clients of this
  // machine are served (loopback addresses and names).
  std::string secret;
  // Further ones wait until one of these ends. Each holds two descriptors and, while it is
  // answered, 256 KiB. A quarter of them may be clients that have sent no request that is let in.
  int most_connections = 384;
  // A client that takes longer is dropped: until its first request that is let in, from one request
  // to the next, for every 256 KiB of an answer.
  int64_t request_ms = 3'000;
  int64_t idle_ms = 60'000;
  int64_t piece_ms = 30'000;
  int threads = 4;
};

// What a client sends as "Authorization: Bearer ...": derived from the cluster's secret, so that
// the secret itself never travels. Whoever reads it on the wire can read the files, nothing else.
std::string FileToken(std::string_view secret);

// What characters a served file's name may have: those that stand in a URL as they are.
inline constexpr char kServedCharacters[] = "letters, digits and . - _ +";

class FileServer {
 public:
  // Listens when it returns: clients wait until they are served.
  static StatusOr<std::unique_ptr<FileServer>> Listen(const FileServerOptions& options);
  // Once. `texts` (JSON) are served besides the files, in place of those of the same names.
  virtual void Serve(std::map<std::string, std::string> texts = {}) = 0;
  virtual ~FileServer() = default;  // stops: open connections are cut
  virtual int port() const = 0;
  virtual uint64_t bytes_sent() const = 0;  // of files
  virtual uint64_t requests() const = 0;    // that were let in
};

struct ModelFile {
  std::string name;
  uint64_t bytes = 0;
};
// What is served of a directory, sorted by name. `unserved` (may be nullptr) gets the names that
// end as a model's do and have other characters than kServedCharacters, or too many.
StatusOr<std::vector<ModelFile>> ListModelFiles(const std::string& directory,
                                                std::vector<std::string>* unserved = nullptr);

}  // namespace lockstep
