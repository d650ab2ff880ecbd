// Where `lockstep shard --from URL` reads.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/base/file.h"
#include "runtime/base/options.h"
#include "runtime/base/status.h"
#include "runtime/weights/http_files.h"

namespace lockstep {

// The files at a URL, mounted as long as this lives.
class ShardSource {
 public:
  // nullptr if the options do not say --from.
  static StatusOr<std::unique_ptr<ShardSource>> Connect(const Options& options);
  ShardSource(const ShardSource&) = delete;
  ShardSource& operator=(const ShardSource&) = delete;

  // To be opened as --model.
  std::string model() const { return files_->model(); }
  // The files there are of ranks, made by `lockstep shard`: nothing to cut, only to copy.
  bool holds_shards() const;
  // Says how much was read.
  void Report() const;

 private:
  explicit ShardSource(std::unique_ptr<HttpFiles> files)
      : files_(std::move(files)), mounted_(files_->directory(), *files_) {}

  const std::unique_ptr<HttpFiles> files_;
  const MountedFiles mounted_;
};

// Whether Hugging Face is asked, by https: to it alone goes the access token of the environment.
bool IsHuggingFace(const std::string& url);
// The access token that HF_TOKEN holds (nullptr: ""); an error if it cannot be one.
StatusOr<std::string> HuggingFaceToken(const char* value);

// Reading over a network: threads mostly wait, each for one connection.
inline constexpr int kRemoteThreads = kHttpConnections;

// The texts of a checkpoint that go where its weights go, if they are there: tokenizer, templates.
inline constexpr const char* kModelTexts[] = {"config.json",           "tokenizer.json",
                                              "tokenizer_config.json", "special_tokens_map.json",
                                              "chat_template.jinja",   "generation_config.json"};

// Copies the files of ranks from the directory `from` (mounted or not) to --out: of --rank only its
// own, otherwise all of --ranks (needed only where the directory holds files for several numbers of
// ranks). Every tensor's checksum is verified. A copy that was ended goes on: tensors whose bytes
// are already there and right are not read again. The texts beside them (kModelTexts, and what
// `lockstep shard` made: tokenizer.gguf, the probe prompt) come first. More than kRemoteThreads
// threads are not used.
Status CopyShards(const Options& options, const std::string& from, int threads);

}  // namespace lockstep
