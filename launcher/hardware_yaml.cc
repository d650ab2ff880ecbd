#include "launcher/hardware_yaml.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <set>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "launcher/nearest.h"
#include "runtime/base/file.h"
#include "runtime/kernels/cache_row.h"

namespace lockstep {
namespace {

using planner::Engine;
using planner::Figure;
using planner::Hardware;
using planner::Link;
using planner::Node;

constexpr uint64_t kLargestFileBytes = uint64_t{1} << 20;
constexpr size_t kLongestText = 1000;
constexpr int kMostNodes = 1024;

// A key whose value is a figure, and its bounds.
template <typename Owner>
struct FigureKey {
  const char* key;
  Figure Owner::*field;
  bool needed;
  double highest = 1e9;
};

constexpr FigureKey<Node> kNodeFigures[] = {{"memory-gib", &Node::memory_gib, true},
                                            {"gb-per-s", &Node::gb_per_s, true},
                                            {"slow-gib", &Node::slow_gib, false},
                                            {"slow-gb-per-s", &Node::slow_gb_per_s, false},
                                            {"tops", &Node::tops, false},
                                            {"watts", &Node::watts, false}};
constexpr FigureKey<Link> kLinkFigures[] = {{"latency-us", &Link::latency_us, true},
                                            {"gb-per-s", &Link::gb_per_s, true}};
constexpr FigureKey<Engine> kEngineFigures[] = {
    {"read-share", &Engine::read_share, true, 1},
    {"arithmetic-share", &Engine::arithmetic_share, false, 1}};
constexpr int64_t kLargestChunk = 65'536;
constexpr FigureKey<Hardware> kHardwareFigures[] = {
    {"price-usd", &Hardware::price_usd, false},
    {"cloud-usd-per-month", &Hardware::cloud_usd_per_month, false},
    {"usd-per-kwh", &Hardware::usd_per_kwh, false},
    {"hours-per-day", &Hardware::hours_per_day, false, 24}};

template <typename Items>
auto FindNamed(const Items& items, std::string_view name) {
  return std::find_if(items.begin(), items.end(),
                      [&](const auto& item) { return item.name == name; });
}

template <typename Items>
std::vector<std::string> NamesOf(const Items& items) {
  std::vector<std::string> names;
  for (const auto& item : items) {
    if (std::find(names.begin(), names.end(), item.name) == names.end()) names.push_back(item.name);
  }
  return names;
}

// Reads one file; remembers its name for errors.
class Reader {
 public:
  explicit Reader(const std::string& name) : name_(name) {}

  StatusOr<HardwareCatalogue> ReadCatalogue(const YAML::Node& root) const {
    HardwareCatalogue all;
    LOCKSTEP_RETURN_IF_ERROR(
        CheckKeys(root, {"usd-per-kwh", "hours-per-day", "nodes", "links", "engines", "presets"}));
    Hardware usual;
    LOCKSTEP_RETURN_IF_ERROR(ReadFigures(root, kHardwareFigures, &usual));
    LOCKSTEP_RETURN_IF_ERROR(ReadNamed(root, "nodes", [&](const auto& name, const auto& value) {
      LOCKSTEP_ASSIGN_OR_RETURN(all.nodes.emplace_back(), ReadNode(name, value));
      return OkStatus();
    }));
    LOCKSTEP_RETURN_IF_ERROR(ReadNamed(root, "links", [&](const auto& name, const auto& value) {
      LOCKSTEP_ASSIGN_OR_RETURN(all.links.emplace_back(), ReadLink(name, value));
      return OkStatus();
    }));
    LOCKSTEP_RETURN_IF_ERROR(ReadNamed(root, "engines", [&](const auto& family, const auto& list) {
      return ReadEngines(family, list, &all.engines);
    }));
    LOCKSTEP_RETURN_IF_ERROR(ReadNamed(root, "presets", [&](const auto& name, const auto& value) {
      LOCKSTEP_ASSIGN_OR_RETURN(all.presets.emplace_back(), ReadHardware(name, value, usual, all));
      return OkStatus();
    }));
    return all;
  }

  StatusOr<Hardware> ReadHardware(const std::string& name, const YAML::Node& map, Hardware usual,
                                  const HardwareCatalogue& catalogue) const {
    std::set<std::string> keys = {"node", "nodes", "link"};
    for (const auto& figure : kHardwareFigures) keys.insert(figure.key);
    LOCKSTEP_RETURN_IF_ERROR(CheckKeys(map, keys));
    Hardware hardware = std::move(usual);
    hardware.name = name;
    LOCKSTEP_RETURN_IF_ERROR(ReadFigures(map, kHardwareFigures, &hardware));
    if (const YAML::Node count = map["nodes"]) {
      LOCKSTEP_ASSIGN_OR_RETURN(const double nodes, Number(count, "nodes", 1, kMostNodes));
      if (nodes != std::floor(nodes))
        return UsageError("%s: nodes is no whole number", Where(count));
      hardware.nodes = static_cast<int>(nodes);
    }
    hardware.cloud_nodes = hardware.nodes;
    const YAML::Node node = map["node"];
    if (!node) return UsageError("%s: key 'node' is missing", Where(map));
    if (node.IsMap()) {
      LOCKSTEP_ASSIGN_OR_RETURN(hardware.node, ReadNode("node of " + name, node));
    } else {
      LOCKSTEP_ASSIGN_OR_RETURN(hardware.node, Chosen(node, "node", catalogue.nodes));
    }
    const YAML::Node link = map["link"];
    if (!link && hardware.nodes > 1)
      return UsageError("%s: key 'link' is missing: what connects the nodes", Where(map));
    if (!link) return hardware;
    if (link.IsMap()) {
      LOCKSTEP_ASSIGN_OR_RETURN(hardware.link, ReadLink("link of " + name, link));
    } else {
      LOCKSTEP_ASSIGN_OR_RETURN(hardware.link, Chosen(link, "link", catalogue.links));
    }
    return hardware;
  }

 private:
  std::string Where(const YAML::Node& node) const {
    const int line = node.Mark().line;
    return line < 0 ? name_ : absl::StrFormat("%s:%d", name_, line + 1);
  }

  StatusOr<std::string> Text(const YAML::Node& node, std::string_view what) const {
    const bool good = node.IsScalar() && node.Scalar().size() <= kLongestText &&
                      std::all_of(node.Scalar().begin(), node.Scalar().end(),
                                  [](char c) { return static_cast<unsigned char>(c) >= 0x20; });
    if (good) return node.Scalar();
    return UsageError("%s: %s is no text of at most %d characters", Where(node), std::string(what),
                      kLongestText);
  }

  StatusOr<double> Number(const YAML::Node& node, std::string_view what, double lowest,
                          double highest) const {
    LOCKSTEP_ASSIGN_OR_RETURN(const std::string text, Text(node, what));
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    const bool whole = !text.empty() && end == text.c_str() + text.size();
    if (whole && value >= lowest && value <= highest) return value;
    return UsageError("%s: %s is '%s', but is a number from %g to %g", Where(node),
                      std::string(what), text, lowest, highest);
  }

  Status CheckKeys(const YAML::Node& map, const std::set<std::string>& known) const {
    if (!map.IsMap()) return UsageError("%s: expected `key: value` lines", Where(map));
    std::set<std::string> seen;
    for (const auto& entry : map) {
      LOCKSTEP_ASSIGN_OR_RETURN(const std::string key, Text(entry.first, "a key"));
      if (!seen.insert(key).second)
        return UsageError("%s: '%s' is given twice", Where(entry.first), key);
      if (known.contains(key)) continue;
      const std::vector<std::string> names(known.begin(), known.end());
      const std::string nearest = Nearest(key, names);
      return UsageError("%s: unknown key '%s'%s; the keys are %s", Where(entry.first), key,
                        nearest.empty() ? "" : "; did you mean '" + nearest + "'?",
                        absl::StrJoin(names, ", "));
    }
    return OkStatus();
  }

  // "273", or "[273, where it is from]".
  StatusOr<Figure> ReadFigure(const YAML::Node& node, const char* key, double highest) const {
    Figure figure;
    const bool pair = node.IsSequence();
    if (pair && node.size() != 2)
      return UsageError("%s: %s is a number, or [number, source]", Where(node), key);
    LOCKSTEP_ASSIGN_OR_RETURN(figure.value, Number(pair ? node[0] : node, key, 0, highest));
    figure.source = name_;
    if (pair) {
      LOCKSTEP_ASSIGN_OR_RETURN(figure.source, Text(node[1], "the source"));
    }
    return figure;
  }

  template <typename Owner, size_t kCount>
  Status ReadFigures(const YAML::Node& map, const FigureKey<Owner> (&figures)[kCount],
                     Owner* owner) const {
    for (const FigureKey<Owner>& figure : figures) {
      const YAML::Node node = map[figure.key];
      if (node) {
        LOCKSTEP_ASSIGN_OR_RETURN(owner->*figure.field,
                                  ReadFigure(node, figure.key, figure.highest));
      }
      if (figure.needed && !(owner->*figure.field).known())
        return UsageError("%s: '%s' is missing or 0", Where(map), figure.key);
    }
    return OkStatus();
  }

  template <typename Read>
  Status ReadNamed(const YAML::Node& root, const char* key, const Read& read) const {
    const YAML::Node map = root[key];
    if (!map || !map.IsMap())
      return UsageError("%s: '%s' is missing, or no list of names", Where(root), key);
    std::set<std::string> seen;
    for (const auto& entry : map) {
      LOCKSTEP_ASSIGN_OR_RETURN(const std::string name, Text(entry.first, "a name"));
      if (!seen.insert(name).second)
        return UsageError("%s: '%s' is given twice", Where(entry.first), name);
      LOCKSTEP_RETURN_IF_ERROR(read(name, entry.second));
    }
    return OkStatus();
  }

  StatusOr<Node> ReadNode(const std::string& name, const YAML::Node& map) const {
    std::set<std::string> keys = {"family"};
    for (const auto& figure : kNodeFigures) keys.insert(figure.key);
    LOCKSTEP_RETURN_IF_ERROR(CheckKeys(map, keys));
    Node node;
    node.name = name;
    node.family = "cpu";
    if (const YAML::Node family = map["family"]) {
      LOCKSTEP_ASSIGN_OR_RETURN(node.family, Text(family, "family"));
    }
    LOCKSTEP_RETURN_IF_ERROR(ReadFigures(map, kNodeFigures, &node));
    if (node.slow_gib.known() != node.slow_gb_per_s.known())
      return UsageError("%s: slow-gib and slow-gb-per-s go together", Where(map));
    return node;
  }

  StatusOr<Link> ReadLink(const std::string& name, const YAML::Node& map) const {
    std::set<std::string> keys;
    for (const auto& figure : kLinkFigures) keys.insert(figure.key);
    LOCKSTEP_RETURN_IF_ERROR(CheckKeys(map, keys));
    Link link;
    link.name = name;
    LOCKSTEP_RETURN_IF_ERROR(ReadFigures(map, kLinkFigures, &link));
    return link;
  }

  Status ReadEngines(const std::string& family, const YAML::Node& list,
                     std::vector<Engine>* engines) const {
    if (!list.IsSequence() || list.size() == 0)
      return UsageError("%s: %s has no list of engines", Where(list), family);
    for (const YAML::Node& entry : list) {
      std::set<std::string> keys = {"name",        "ways",           "ring", "in-turns",
                                    "of-measured", "kv-cache-dtype", "wire", "prefill-chunk"};
      for (const auto& figure : kEngineFigures) keys.insert(figure.key);
      LOCKSTEP_RETURN_IF_ERROR(CheckKeys(entry, keys));
      Engine engine;
      engine.family = family;
      LOCKSTEP_ASSIGN_OR_RETURN(engine.name, Text(entry["name"], "name"));
      LOCKSTEP_RETURN_IF_ERROR(ReadHabits(entry, &engine));
      LOCKSTEP_RETURN_IF_ERROR(ReadFigures(entry, kEngineFigures, &engine));
      engines->push_back(std::move(engine));
    }
    return OkStatus();
  }

  // What it does, besides how well.
  Status ReadHabits(const YAML::Node& entry, Engine* engine) const {
    LOCKSTEP_ASSIGN_OR_RETURN(engine->in_turns, Flag(entry, "in-turns"));
    LOCKSTEP_ASSIGN_OR_RETURN(engine->of_measured, Flag(entry, "of-measured"));
    if (const YAML::Node ring = entry["ring"]) {
      if (!ring.IsSequence() || ring.size() != 2)
        return UsageError("%s: ring is [true or false, source]", Where(ring));
      LOCKSTEP_ASSIGN_OR_RETURN(const std::string text, OneOf(ring[0], "ring", {"true", "false"}));
      engine->ring = text == "true";
      LOCKSTEP_ASSIGN_OR_RETURN(engine->ring_source, Text(ring[1], "the source"));
    }
    if (const YAML::Node ways = entry["ways"]) {
      if (!ways.IsSequence() || ways.size() == 0)
        return UsageError("%s: ways is a list of single, pipeline, tensor", Where(ways));
      for (const YAML::Node& way : ways) {
        LOCKSTEP_ASSIGN_OR_RETURN(engine->ways.emplace_back(),
                                  OneOf(way, "a way", {"single", "pipeline", "tensor"}));
      }
    }
    if (const YAML::Node cache = entry["kv-cache-dtype"]) {
      LOCKSTEP_ASSIGN_OR_RETURN(engine->cache, Text(cache, "kv-cache-dtype"));
      const auto type = kernels::CacheTypeOf(engine->cache);
      if (!type.ok()) return UsageError("%s: %s", Where(cache), MessageOf(type.status()));
    }
    if (const YAML::Node wire = entry["wire"]) {
      LOCKSTEP_ASSIGN_OR_RETURN(engine->wire, OneOf(wire, "wire", {"f32", "bf16", "int8"}));
    }
    if (const YAML::Node chunk = entry["prefill-chunk"]) {
      LOCKSTEP_ASSIGN_OR_RETURN(const double rows,
                                Number(chunk, "prefill-chunk", 1, kLargestChunk));
      engine->chunk = static_cast<int64_t>(rows);
    }
    return OkStatus();
  }

  StatusOr<std::string> OneOf(const YAML::Node& node, const char* what,
                              const std::vector<std::string>& allowed) const {
    LOCKSTEP_ASSIGN_OR_RETURN(const std::string text, Text(node, what));
    if (std::find(allowed.begin(), allowed.end(), text) != allowed.end()) return text;
    return UsageError("%s: %s is '%s', but is one of %s", Where(node), what, text,
                      absl::StrJoin(allowed, ", "));
  }

  StatusOr<bool> Flag(const YAML::Node& map, const char* key) const {
    const YAML::Node node = map[key];
    if (!node) return false;
    LOCKSTEP_ASSIGN_OR_RETURN(const std::string text, OneOf(node, key, {"true", "false"}));
    return text == "true";
  }

  template <typename Item>
  StatusOr<Item> Chosen(const YAML::Node& node, const char* what,
                        const std::vector<Item>& items) const {
    LOCKSTEP_ASSIGN_OR_RETURN(const std::string name, Text(node, what));
    const auto found = FindNamed(items, name);
    if (found != items.end()) return *found;
    return UsageError("%s: %s '%s' is not known; known are %s", Where(node), what, name,
                      absl::StrJoin(NamesOf(items), ", "));
  }

  const std::string& name_;
};

// yaml-cpp throws for malformed text and for nesting beyond its own limit.
template <typename Read>
auto Guarded(const std::string& name, const Read& read) -> decltype(read()) {
  try {
    return read();
  } catch (const YAML::Exception& error) {
    return UsageError("%s:%d: not valid YAML: %s", name, error.mark.line + 1, error.msg);
  } catch (const std::exception& error) {
    return UsageError("%s: cannot read as YAML: %s", name, error.what());
  }
}

}  // namespace

StatusOr<HardwareCatalogue> ParseHardwareCatalogue(const std::string& text,
                                                   const std::string& name) {
  return Guarded(name, [&] { return Reader(name).ReadCatalogue(YAML::Load(text)); });
}

StatusOr<Hardware> ParseHardware(const std::string& text, const std::string& name,
                                 const HardwareCatalogue& catalogue) {
  // What nobody says of a cluster is as in the presets.
  Hardware usual;
  if (!catalogue.presets.empty()) {
    usual.usd_per_kwh = catalogue.presets.front().usd_per_kwh;
    usual.hours_per_day = catalogue.presets.front().hours_per_day;
  }
  return Guarded(
      name, [&] { return Reader(name).ReadHardware(name, YAML::Load(text), usual, catalogue); });
}

StatusOr<Hardware> FindHardware(const std::string& wanted, const HardwareCatalogue& catalogue) {
  const auto preset = FindNamed(catalogue.presets, wanted);
  if (preset != catalogue.presets.end()) return *preset;
  if (FileExists(wanted)) {
    const StatusOr<std::string> text = ReadTextFile(wanted, kLargestFileBytes);
    if (!text.ok()) return UsageError("--hardware: %s", MessageOf(text.status()));
    return ParseHardware(*text, wanted, catalogue);
  }
  const std::vector<std::string> names = NamesOf(catalogue.presets);
  const std::string nearest = Nearest(wanted, names);
  return UsageError("--hardware '%s' is no preset%s and no file; the presets are %s", wanted,
                    nearest.empty() ? "" : " (did you mean '" + nearest + "'?)",
                    absl::StrJoin(names, ", "));
}

StatusOr<Engine> FindEngine(const std::string& wanted, const std::string& family,
                            const HardwareCatalogue& catalogue) {
  std::vector<std::string> names, families;
  for (const Engine& engine : catalogue.engines) {
    if (engine.family == family && (wanted.empty() || engine.name == wanted)) return engine;
    if (engine.family == family) names.push_back(engine.name);
    if (families.empty() || families.back() != engine.family) families.push_back(engine.family);
  }
  if (names.empty())
    return UsageError("no engine was measured on the family '%s'; the families are %s", family,
                      absl::StrJoin(families, ", "));
  return UsageError("--engine '%s' was not measured on the family '%s'; of it are %s", wanted,
                    family, absl::StrJoin(names, ", "));
}

}  // namespace lockstep
