#include "launcher/cluster_yaml.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <exception>
#include <filesystem>
#include <set>

#include "launcher/nearest.h"
#include "runtime/base/file.h"

namespace lockstep {
namespace {

constexpr uint64_t kLargestFileBytes = uint64_t{1} << 20;
constexpr size_t kMostNodes = 1024;
constexpr size_t kLongestValue = 65'536;

const std::vector<std::string>& NodeKeys() {
  static const std::vector<std::string> keys = {"address",   "share",  "threads",
                                                "interface", "device", "name"};
  return keys;
}

std::string Joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

// Reads one file; remembers its name for errors.
class Reader {
 public:
  explicit Reader(const std::string& name) : name_(name) {}

  StatusOr<ClusterFile> Read(const YAML::Node& root) {
    ClusterFile file;
    if (root.IsNull()) return file;
    if (!root.IsMap()) return UsageError("%s: expected `key: value` lines", Where(root));
    std::set<std::string> seen;
    for (const auto& entry : root) {
      LOCKSTEP_ASSIGN_OR_RETURN(const std::string key, Key(entry.first, &seen));
      if (key == "nodes") {
        LOCKSTEP_RETURN_IF_ERROR(ReadNodes(entry.second, &file));
      } else {
        LOCKSTEP_RETURN_IF_ERROR(ReadOption(key, entry.first, entry.second, &file.options));
      }
    }
    LOCKSTEP_RETURN_IF_ERROR(CheckWhole(root, seen, &file));
    return file;
  }

 private:
  std::string Where(const YAML::Node& node) const {
    const int line = node.Mark().line;
    return line < 0 ? name_ : absl::StrFormat("%s:%d", name_, line + 1);
  }

  StatusOr<std::string> Key(const YAML::Node& node, std::set<std::string>* seen) const {
    if (!node.IsScalar()) return UsageError("%s: a key must be one word", Where(node));
    const std::string key = node.Scalar();
    if (!seen->insert(key).second) {
      return UsageError("%s: %s is given twice", Where(node), Shown(key));
    }
    return key;
  }

  // Keys and values of a hostile file may be long or hold control characters.
  static std::string Shown(const std::string& text) {
    std::string shown = text.substr(0, 80);
    for (char& c : shown) {
      if (static_cast<unsigned char>(c) < 0x20) c = '?';
    }
    return "'" + shown + (text.size() > 80 ? "...'" : "'");
  }

  StatusOr<std::string> Scalar(const std::string& key, const YAML::Node& value) const {
    if (value.IsNull()) return UsageError("%s: %s has no value", Where(value), key);
    if (!value.IsScalar()) return UsageError("%s: %s takes a single value", Where(value), key);
    if (value.Scalar().size() > kLongestValue) {
      return UsageError("%s: %s is longer than %d bytes", Where(value), key, kLongestValue);
    }
    if (value.Scalar().find('\0') != std::string::npos) {
      return UsageError("%s: %s contains a zero byte", Where(value), key);
    }
    return value.Scalar();
  }

  Status ReadOption(const std::string& key, const YAML::Node& key_node, const YAML::Node& value,
                    Options* options) const {
    const OptionSpec* spec = FindOption(key);
    if (key == "config" || key == "rank") {
      return UsageError("%s: %s belongs on the command line, the file is the same on all nodes",
                        Where(key_node), key);
    }
    if (spec == nullptr) return UnknownKey(key, key_node);
    const std::string where = absl::StrFormat("%s: %s", Where(value), key);
    if (std::holds_alternative<std::vector<double> Options::*>(spec->field) && value.IsSequence()) {
      std::vector<std::string> items;
      for (const YAML::Node& item : value) {
        LOCKSTEP_ASSIGN_OR_RETURN(items.emplace_back(), Scalar(key, item));
        if (items.size() > kMostNodes) return UsageError("%s: too many values", where);
      }
      std::string text;
      for (const std::string& item : items) text += (text.empty() ? "" : ",") + item;
      return SetOption(*spec, text, where, options);
    }
    if (std::holds_alternative<std::vector<std::string> Options::*>(spec->field) &&
        value.IsSequence()) {
      for (const YAML::Node& item : value) {
        LOCKSTEP_ASSIGN_OR_RETURN(const std::string text, Scalar(key, item));
        LOCKSTEP_RETURN_IF_ERROR(SetOption(*spec, text, where, options));
      }
      return OkStatus();
    }
    LOCKSTEP_ASSIGN_OR_RETURN(const std::string text, Scalar(key, value));
    return SetOption(*spec, text, where, options);
  }

  Status UnknownKey(const std::string& key, const YAML::Node& node) const {
    std::vector<std::string> names = {"nodes"};
    for (const OptionSpec& spec : OptionTable()) names.emplace_back(spec.name);
    const std::string nearest = Nearest(key, names);
    if (!nearest.empty()) {
      return UsageError("%s: unknown key %s; did you mean '%s'?", Where(node), Shown(key), nearest);
    }
    return UsageError("%s: unknown key %s; the keys are %s", Where(node), Shown(key),
                      Joined(names));
  }

  Status ReadNodes(const YAML::Node& list, ClusterFile* file) const {
    if (!list.IsSequence() || list.size() == 0) {
      return UsageError("%s: nodes must be a list, each entry like `- address: spark-1`",
                        Where(list));
    }
    if (list.size() > kMostNodes) {
      return UsageError("%s: %d nodes, at most %d", Where(list), list.size(), kMostNodes);
    }
    for (const YAML::Node& entry : list) {
      LOCKSTEP_ASSIGN_OR_RETURN(file->nodes.emplace_back(), ReadNode(entry));
    }
    return OkStatus();
  }

  StatusOr<ClusterNode> ReadNode(const YAML::Node& entry) const {
    if (!entry.IsMap()) {
      return UsageError("%s: a node needs keys, for example `- address: spark-1`; the keys are %s",
                        Where(entry), Joined(NodeKeys()));
    }
    ClusterNode node;
    std::set<std::string> seen;
    for (const auto& item : entry) {
      LOCKSTEP_ASSIGN_OR_RETURN(const std::string key, Key(item.first, &seen));
      LOCKSTEP_RETURN_IF_ERROR(ReadNodeKey(key, item.first, item.second, &node));
    }
    if (node.host.empty()) return UsageError("%s: this node has no address", Where(entry));
    if (node.name.empty()) node.name = node.host;
    return node;
  }

  Status ReadNodeKey(const std::string& key, const YAML::Node& key_node, const YAML::Node& value,
                     ClusterNode* node) const {
    if (std::find(NodeKeys().begin(), NodeKeys().end(), key) == NodeKeys().end()) {
      const std::string nearest = Nearest(key, NodeKeys());
      return UsageError("%s: unknown key %s of a node%s; the keys are %s", Where(key_node),
                        Shown(key), nearest.empty() ? "" : "; did you mean '" + nearest + "'?",
                        Joined(NodeKeys()));
    }
    LOCKSTEP_ASSIGN_OR_RETURN(const std::string text, Scalar(key, value));
    const std::string where = absl::StrFormat("%s: %s", Where(value), key);
    if (text.empty()) return UsageError("%s is empty", where);
    if (key == "address") {
      LOCKSTEP_ASSIGN_OR_RETURN(const ClusterNode parsed, ParseAddress(text, where));
      node->host = parsed.host;
      node->port = parsed.port;
      return OkStatus();
    }
    if (key == "name") {
      node->name = text;
      return OkStatus();
    }
    if (key == "device") {
      LOCKSTEP_ASSIGN_OR_RETURN(node->device, kernels::ParseDevice(text, where));
      return OkStatus();
    }
    // The other keys mean what the option of that name means, for one node.
    Options options;
    const OptionSpec* spec = FindOption(key == "share" ? "shares" : key);
    LOCKSTEP_RETURN_IF_ERROR(SetOption(*spec, text, where, &options));
    if (key == "interface") node->interface = options.interface;
    if (key == "threads") node->threads = options.threads;
    if (key == "share") {
      if (options.shares.size() != 1) return UsageError("%s takes one number", where);
      node->share = options.shares.front();
      node->has_share = true;
    }
    return OkStatus();
  }

  Status CheckWhole(const YAML::Node& root, const std::set<std::string>& seen,
                    ClusterFile* file) const {
    if (file->nodes.empty()) return OkStatus();
    const auto count = static_cast<int64_t>(file->nodes.size());
    Options& options = file->options;
    if (options.ranks != 0 && options.ranks != count) {
      return UsageError("%s: ranks is %d but nodes lists %d; leave ranks out", Where(root["ranks"]),
                        options.ranks, count);
    }
    const bool any_share = std::any_of(file->nodes.begin(), file->nodes.end(),
                                       [](const ClusterNode& node) { return node.has_share; });
    if (any_share && seen.count("shares") > 0) {
      return UsageError("%s: shares are given here and at the nodes; keep one",
                        Where(root["shares"]));
    }
    if (!options.shares.empty() && static_cast<int64_t>(options.shares.size()) != count) {
      return UsageError("%s: %d shares for %d nodes", Where(root["shares"]), options.shares.size(),
                        count);
    }
    if (any_share) {
      for (const ClusterNode& node : file->nodes) options.shares.push_back(node.share);
    }
    return OkStatus();
  }

  const std::string& name_;
};

}  // namespace

StatusOr<ClusterFile> ParseClusterYaml(const std::string& text, const std::string& name) {
  // yaml-cpp throws for malformed text and for nesting beyond its own limit.
  try {
    return Reader(name).Read(YAML::Load(text));
  } catch (const YAML::Exception& error) {
    return UsageError("%s:%d: not valid YAML: %s", name, error.mark.line + 1, error.msg);
  } catch (const std::exception& error) {
    return UsageError("%s: cannot read as YAML: %s", name, error.what());
  }
}

StatusOr<ClusterFile> ReadClusterYaml(const std::string& path) {
  const StatusOr<std::string> text = ReadTextFile(path, kLargestFileBytes);
  if (!text.ok()) return UsageError("--config: %s", MessageOf(text.status()));
  return ParseClusterYaml(*text, path);
}

StatusOr<std::string> WithNumber(const std::string& text, const std::string& name,
                                 std::string_view option, int64_t number) {
  const auto field = std::get<int64_t Options::*>(FindOption(option)->field);
  LOCKSTEP_ASSIGN_OR_RETURN(const ClusterFile before, ParseClusterYaml(text, name));
  if (before.options.*field == number) return text;
  const std::string key = std::string(option) + ":";
  const std::string line = key + " " + std::to_string(number);
  std::string changed = text;
  if (!changed.empty() && changed.back() != '\n') changed += '\n';
  size_t begin = changed.starts_with(key) ? 0 : changed.find("\n" + key);
  if (begin == std::string::npos) {
    changed += line + "\n";
  } else {
    if (begin != 0) ++begin;
    changed.replace(begin, changed.find('\n', begin) - begin, line);
  }
  const StatusOr<ClusterFile> parsed = ParseClusterYaml(changed, name);
  if (parsed.ok() && parsed->options.*field == number) return changed;
  return UsageError("%s: `%s` is best, but cannot be added there; put it in by hand%s", name, line,
                    parsed.ok() ? "" : " (" + MessageOf(parsed.status()) + ")");
}

Status RecordNumbers(const std::string& path,
                     std::span<const std::pair<std::string_view, int64_t>> numbers) {
  LOCKSTEP_ASSIGN_OR_RETURN(std::string text, ReadTextFile(path, kLargestFileBytes));
  for (const auto& [option, number] : numbers) {
    LOCKSTEP_ASSIGN_OR_RETURN(text, WithNumber(text, path, option, number));
  }
  std::error_code error;
  const std::filesystem::path file = std::filesystem::canonical(path, error);
  const auto mode = std::filesystem::status(file, error).permissions();
  if (error) return UsageError("%s: cannot find it: %s", path, error.message());
  LOCKSTEP_RETURN_IF_ERROR(WriteFileAtomically(file, std::as_bytes(std::span(text))));
  std::filesystem::permissions(file, mode, error);
  return error ? UsageError("%s: cannot set its mode: %s", path, error.message()) : OkStatus();
}

StatusOr<ClusterNode> ParseAddress(std::string_view text, std::string_view where) {
  ClusterNode node;
  std::string_view port;
  bool has_port = false;
  if (!text.empty() && text.front() == '[') {
    const size_t close = text.find(']');
    const bool good =
        close != std::string_view::npos && (close + 1 == text.size() || text[close + 1] == ':');
    if (!good) return UsageError("%s: '%s' is not [address]:port", where, text);
    node.host = std::string(text.substr(1, close - 1));
    has_port = close + 1 < text.size();
    if (has_port) port = text.substr(close + 2);
  } else if (std::count(text.begin(), text.end(), ':') == 1) {
    const size_t colon = text.find(':');
    node.host = std::string(text.substr(0, colon));
    port = text.substr(colon + 1);
    has_port = true;
  } else {
    node.host = std::string(text);
  }
  const bool plain = std::all_of(node.host.begin(), node.host.end(), [](unsigned char c) {
    return c > 0x20 && c < 0x7f && c != '/' && c != '[' && c != ']';
  });
  if (node.host.empty() || node.host.size() > 255 || !plain) {
    return UsageError("%s: '%s' is not host or host:port", where, text);
  }
  if (!has_port) return node;
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), node.port);
  if (error != std::errc() || end != port.data() + port.size() || node.port < 1 ||
      node.port > 65'535) {
    return UsageError("%s: port '%s' is outside 1 .. 65535", where, port);
  }
  return node;
}

}  // namespace lockstep
