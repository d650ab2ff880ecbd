// `lockstep inspect` of a directory that `lockstep shard` made.
#include <cstdio>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "launcher/commands/inspect.h"
#include "launcher/probe.h"
#include "launcher/progress.h"
#include "nlohmann/json.hpp"
#include "runtime/base/file.h"
#include "runtime/model/config.h"
#include "runtime/model/model.h"
#include "runtime/model/probe.h"
#include "runtime/model/tensor_groups.h"
#include "runtime/weights/shard_file.h"

namespace lockstep {
namespace {

struct RankFile {
  std::string name;
  ShardHeader header;
  uint64_t bytes = 0;
  uint64_t bytes_per_token = 0;
  std::map<TensorGroup, std::map<std::string, uint64_t>> formats;  // bytes by name
};

struct FileSet {
  std::vector<RankFile> files;      // those of the set, by rank
  std::vector<std::string> faults;  // what is missing, damaged or of another set
  std::string probe;                // "recorded", "missing", ...
};

RankFile Describe(std::string name, ShardHeader header, const ModelConfig& config) {
  RankFile file;
  file.name = std::move(name);
  std::map<TensorGroup, uint64_t> groups;
  for (const ShardTensor& tensor : header.tensors) {
    file.bytes += tensor.bytes;
    groups[GroupOf(config, tensor.name)] += tensor.bytes;
    if (tensor.bytes > 0)
      file.formats[GroupOf(config, tensor.name)][tensor.format.Name()] += tensor.bytes;
  }
  file.bytes_per_token = BytesPerToken(std::move(groups), config);
  header.tensors.clear();
  file.header = std::move(header);
  return file;
}

std::string ProbeState(const std::string& directory, const ShardHeader& header,
                       const ModelConfig& config) {
  const std::string path = directory + "/" + kProbeName;
  if (!FileExists(path)) return "missing; record it: " + RecordCommand(directory, header.shares);
  const StatusOr<std::string> text = ReadTextFile(path, uint64_t{1} << 20, ErrorKind::kModel);
  if (!text.ok()) return MessageOf(text.status());
  const StatusOr<ProbeRecord> record = ParseProbe(*text, config.vocab_size, path);
  if (!record.ok()) return MessageOf(record.status());
  if (record->settings != header.settings) return "of other files";
  return "recorded " + record->computed;
}

// The set is that of the first sound file; headers of the others are compared with it.
StatusOr<FileSet> ReadSet(const std::string& directory) {
  LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<std::string> names, ShardFilesIn(directory));
  FileSet set;
  std::map<int, RankFile> ranks;
  std::set<std::string> faulty;
  const auto fault = [&](const std::string& name, std::string text) {
    faulty.insert(name);
    set.faults.push_back(std::move(text));
  };
  Status first_error = OkStatus();
  ModelConfig config;
  for (const std::string& name : names) {
    StatusOr<ShardHeader> header = ReadShardHeader(directory + "/" + name);
    if (!header.ok()) {
      if (first_error.ok()) first_error = header.status();
      fault(name, MessageOf(header.status()));
      continue;
    }
    if (name != ShardName(header->rank, header->ranks())) {
      fault(name, absl::StrFormat("%s/%s: holds rank %d of %d, so it has another's name", directory,
                                  name, header->rank, header->ranks()));
      continue;
    }
    if (!ranks.empty() && header->settings != ranks.begin()->second.header.settings) {
      const RankFile& first = ranks.begin()->second;
      fault(name,
            absl::StrFormat("%s/%s: is of another set (settings %016x; those of %s: %016x)",
                            directory, name, header->settings, first.name, first.header.settings));
      continue;
    }
    if (ranks.empty()) {
      LOCKSTEP_ASSIGN_OR_RETURN(config, ParseModelConfig(header->config, directory + "/" + name));
    }
    const int rank = header->rank;
    ranks.emplace(rank, Describe(name, *std::move(header), config));
  }
  if (ranks.empty()) return first_error;
  const ShardHeader& header = ranks.begin()->second.header;
  for (int rank = 0; rank < header.ranks(); ++rank) {
    const std::string name = ShardName(rank, header.ranks());
    if (!ranks.contains(rank) && !faulty.contains(name))
      set.faults.push_back(absl::StrFormat("%s/%s: missing", directory, name));
  }
  set.probe = ProbeState(directory, header, config);
  const std::vector<double> shares = header.shares;
  for (auto& [rank, file] : ranks) {
    // What is read from memory, in which a few formats are wider than in the file.
    const auto checkpoint = Checkpoint::Open(directory, {rank, shares});
    const StatusOr<SlicePlan> plan =
        checkpoint.ok() ? PlanSlice(config, **checkpoint, shares, rank) : checkpoint.status();
    if (plan.ok()) file.bytes_per_token = plan->weight_bytes_per_token;
    if (!plan.ok()) set.faults.push_back(MessageOf(plan.status()));
    set.files.push_back(std::move(file));
  }
  return set;
}

void PrintSet(const std::string& directory, const FileSet& set) {
  const ShardHeader& header = set.files.front().header;
  std::printf("%s: files for %d ranks, shares %s, settings %016llx\n\n", directory.c_str(),
              header.ranks(), FormatShares(header.shares).c_str(),
              static_cast<unsigned long long>(header.settings));
  for (const RankFile& file : set.files) {
    std::printf("%-28s share %-6g %12.3f MB; read per decoded token: %.3f MB\n", file.name.c_str(),
                header.shares[static_cast<size_t>(file.header.rank)],
                static_cast<double>(file.bytes) / 1e6,
                static_cast<double>(file.bytes_per_token) / 1e6);
  }
  std::printf("\n%-20s %12s  %s\n", "component", "MB", "formats");
  for (const auto& [group, title] : kComponents) {
    uint64_t bytes = 0;
    std::map<std::string, uint64_t> formats;
    for (const RankFile& file : set.files) {
      const auto found = file.formats.find(group);
      if (found == file.formats.end()) continue;
      for (const auto& [name, count] : found->second) bytes += count, formats[name] += count;
    }
    if (bytes == 0) continue;
    std::string text;
    for (const auto& [name, count] : formats) text += (text.empty() ? "" : ", ") + name;
    std::printf("%-20s %12.3f  %s\n", title, static_cast<double>(bytes) / 1e6, text.c_str());
  }
  std::printf("\nprobe prompt: %s\n", set.probe.c_str());
  for (const std::string& fault : set.faults) std::printf("%s\n", fault.c_str());
}

void PrintSetJson(const std::string& directory, const FileSet& set) {
  const ShardHeader& header = set.files.front().header;
  nlohmann::ordered_json line = {
      {"model", directory},      {"ranks", header.ranks()},
      {"shares", header.shares}, {"settings", absl::StrFormat("%016x", header.settings)},
      {"probe", set.probe},      {"faults", set.faults}};
  for (const RankFile& file : set.files) {
    nlohmann::ordered_json components = nlohmann::ordered_json::object();
    for (const auto& [group, title] : kComponents) {
      const auto found = file.formats.find(group);
      if (found != file.formats.end()) components[title] = found->second;
    }
    line["files"].push_back({{"name", file.name},
                             {"rank", file.header.rank},
                             {"bytes", file.bytes},
                             {"bytes_per_token", file.bytes_per_token},
                             {"components", std::move(components)}});
  }
  std::printf("%s\n", line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

}  // namespace

Status InspectFilesOfRanks(const Options& options) {
  LOCKSTEP_ASSIGN_OR_RETURN(const FileSet set, ReadSet(options.model));
  options.json ? PrintSetJson(options.model, set) : PrintSet(options.model, set);
  if (set.faults.empty()) return OkStatus();
  return ModelError(
      "%s: is no whole set of files of ranks: %s%s", options.model, set.faults.front(),
      set.faults.size() > 1 ? absl::StrFormat(", and %d more faults", set.faults.size() - 1) : "");
}

}  // namespace lockstep
