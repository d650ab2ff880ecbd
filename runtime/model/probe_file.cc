// probe.json: written by `lockstep shard` or `lockstep verify --exact --record`, read by every
// start.
#include <cmath>

#include "nlohmann/json.hpp"
#include "runtime/model/probe.h"
#include "runtime/weights/bounded_json.h"

namespace lockstep {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr int64_t kVersion = 1;
constexpr char kRemedy[] =
    "run lockstep shard again, or, with files that are known to be good, lockstep verify --model "
    "DIR --ranks N --exact --record";

// Reads values out of one object, each of which must be there and of its kind.
class Reader {
 public:
  Reader(const json& object, std::string where) : object_(object), where_(std::move(where)) {}

  StatusOr<std::string> Text(const char* key) const {
    const auto found = object_.find(key);
    if (found == object_.end() || !found->is_string()) return Bad(key, "a text");
    return found->get<std::string>();
  }
  StatusOr<double> Number(const char* key, double lowest) const {
    const auto found = object_.find(key);
    if (found == object_.end()) return Bad(key, "a number");
    return Finite(*found, key, lowest);
  }
  StatusOr<double> Finite(const json& number, const char* key, double lowest) const {
    const double value = number.is_number() ? number.get<double>() : NAN;
    if (!(value >= lowest) || !std::isfinite(value)) return Bad(key, "a number in its bounds");
    return value;
  }
  StatusOr<const json*> Array(const char* key, size_t size) const {
    const auto found = object_.find(key);
    if (found == object_.end() || !found->is_array() || found->size() != size)
      return Bad(key, "an array of its length");
    return &*found;
  }
  Status Bad(const char* key, const char* what) const {
    return ModelError("%s: %s is not %s; %s", where_, key, what, kRemedy);
  }

 private:
  const json& object_;
  std::string where_;
};

StatusOr<ProbeRow> ParseRow(const json& entry, int64_t vocab_size, const std::string& where) {
  if (!entry.is_object()) return ModelError("%s: a row is no object; %s", where, kRemedy);
  const Reader reader(entry, where);
  ProbeRow row;
  const size_t count = std::min(kProbeTop, static_cast<size_t>(vocab_size));
  LOCKSTEP_ASSIGN_OR_RETURN(const json* top, reader.Array("top", count));
  for (const json& candidate : *top) {
    const bool pair = candidate.is_array() && candidate.size() == 2 &&
                      candidate[0].is_number_unsigned() &&
                      candidate[0].get<uint64_t>() < static_cast<uint64_t>(vocab_size);
    if (!pair) return reader.Bad("top", "pairs of a token and its logit");
    LOCKSTEP_ASSIGN_OR_RETURN(const double logit, reader.Finite(candidate[1], "top", -INFINITY));
    row.top.emplace_back(candidate[0].get<int64_t>(), logit);
  }
  LOCKSTEP_ASSIGN_OR_RETURN(row.log_sum_exp, reader.Number("log_sum_exp", -INFINITY));
  LOCKSTEP_ASSIGN_OR_RETURN(row.deviation, reader.Number("deviation", 0));
  LOCKSTEP_ASSIGN_OR_RETURN(const json* projections,
                            reader.Array("projections", kProbeProjections));
  for (const json& projection : *projections) {
    LOCKSTEP_ASSIGN_OR_RETURN(const double value,
                              reader.Finite(projection, "projections", -INFINITY));
    row.projections.push_back(value);
  }
  return row;
}

}  // namespace

std::string ProbeText(const ProbeRecord& record, int64_t vocab_size) {
  ordered_json root;
  root["lockstep_probe"] = kVersion;
  root["settings"] = absl::StrFormat("%016x", record.settings);
  root["from_source"] = record.from_source;
  root["computed"] = record.computed;
  root["fast_distance"] =
      record.fast_distance.has_value() ? ordered_json(*record.fast_distance) : ordered_json();
  root["prompts"] = ProbePromptsOf(vocab_size);
  ordered_json rows = ordered_json::array();
  for (const ProbeRow& row : record.rows) {
    rows.push_back({{"top", row.top},
                    {"log_sum_exp", row.log_sum_exp},
                    {"deviation", row.deviation},
                    {"projections", row.projections}});
  }
  root["rows"] = std::move(rows);
  return root.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

StatusOr<ProbeRecord> ParseProbe(const std::string& text, int64_t vocab_size,
                                 const std::string& name) {
  // Nothing is nested deeper than a row's candidates.
  const json root = ParseBoundedJson(text, 5);
  if (!root.is_object()) return ModelError("%s: is no JSON object; %s", name, kRemedy);
  const Reader reader(root, name);
  LOCKSTEP_ASSIGN_OR_RETURN(const double version, reader.Number("lockstep_probe", 0));
  if (version != kVersion) return reader.Bad("lockstep_probe", "the version that this build reads");
  ProbeRecord record;
  LOCKSTEP_ASSIGN_OR_RETURN(const std::string settings, reader.Text("settings"));
  if (settings.size() != 16 || settings.find_first_not_of("0123456789abcdef") != std::string::npos)
    return reader.Bad("settings", "16 hexadecimal digits");
  record.settings = std::stoull(settings, nullptr, 16);
  if (const auto source = root.find("from_source"); source != root.end()) {
    if (!source->is_boolean()) return reader.Bad("from_source", "true or false");
    record.from_source = source->get<bool>();
  }
  LOCKSTEP_ASSIGN_OR_RETURN(record.computed, reader.Text("computed"));
  const auto fast = root.find("fast_distance");
  if (fast != root.end() && !fast->is_null()) {
    LOCKSTEP_ASSIGN_OR_RETURN(record.fast_distance, reader.Number("fast_distance", 0));
  }
  const auto prompts = root.find("prompts");
  if (prompts == root.end() || *prompts != json(ProbePromptsOf(vocab_size)))
    return reader.Bad("prompts", "what this build asks of a vocabulary of this size");
  LOCKSTEP_ASSIGN_OR_RETURN(const json* rows, reader.Array("rows", kProbePrompts));
  for (const json& entry : *rows) {
    LOCKSTEP_ASSIGN_OR_RETURN(ProbeRow row, ParseRow(entry, vocab_size, name + ": a row"));
    record.rows.push_back(std::move(row));
  }
  return record;
}

}  // namespace lockstep
