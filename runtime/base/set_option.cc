// How an option gets its value, whatever brings it.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>
#include <utility>

#include "runtime/base/options.h"

namespace lockstep {
namespace {

std::string Choices(const OptionSpec& spec) {
  std::string text;
  for (const char* value : spec.allowed) text += (text.empty() ? "" : ", ") + std::string(value);
  return text;
}

StatusOr<double> ParseNumber(const OptionSpec& spec, std::string_view text, std::string_view where,
                             bool whole) {
  const std::string copy(text);
  char* end = nullptr;
  const double value = std::strtod(copy.c_str(), &end);
  const bool parsed = !copy.empty() && end == copy.c_str() + copy.size() && std::isfinite(value);
  if (!parsed || (whole && value != std::floor(value))) {
    return UsageError("%s: '%s' is not %s", std::string(where), copy,
                      whole ? "a whole number" : "a number");
  }
  if (value < spec.lowest || value > spec.highest) {
    return UsageError("%s: %s is outside %.12g .. %.12g", std::string(where), copy, spec.lowest,
                      spec.highest);
  }
  return value;
}

struct Setter {
  const OptionSpec& spec;
  std::string_view text;
  std::string_view where;
  Options* options;

  Status operator()(std::string Options::*field) const {
    bool known = spec.allowed.empty();
    for (const char* value : spec.allowed) known = known || text == value;
    if (!known) {
      return UsageError("%s: '%s' is not one of %s", std::string(where), std::string(text),
                        Choices(spec));
    }
    options->*field = std::string(text);
    return OkStatus();
  }
  Status operator()(int64_t Options::*field) const {
    LOCKSTEP_ASSIGN_OR_RETURN(const double value, ParseNumber(spec, text, where, true));
    options->*field = static_cast<int64_t>(value);
    return OkStatus();
  }
  Status operator()(std::optional<int64_t> Options::*field) const {
    LOCKSTEP_ASSIGN_OR_RETURN(const double value, ParseNumber(spec, text, where, true));
    options->*field = static_cast<int64_t>(value);
    return OkStatus();
  }
  Status operator()(double Options::*field) const {
    LOCKSTEP_ASSIGN_OR_RETURN(options->*field, ParseNumber(spec, text, where, false));
    return OkStatus();
  }
  Status operator()(std::optional<double> Options::*field) const {
    LOCKSTEP_ASSIGN_OR_RETURN(options->*field, ParseNumber(spec, text, where, false));
    return OkStatus();
  }
  Status operator()(bool Options::*field) const {
    if (text != "true" && text != "false") {
      return UsageError("%s: '%s' is not one of true, false", std::string(where),
                        std::string(text));
    }
    options->*field = text == "true";
    return OkStatus();
  }
  Status operator()(std::vector<double> Options::*field) const {
    std::vector<double> values;
    size_t begin = 0;
    while (begin <= text.size()) {
      const size_t comma = std::min(text.find(',', begin), text.size());
      LOCKSTEP_ASSIGN_OR_RETURN(const double value,
                                ParseNumber(spec, text.substr(begin, comma - begin), where, false));
      values.push_back(value);
      begin = comma + 1;
    }
    options->*field = std::move(values);
    return OkStatus();
  }
  Status operator()(std::vector<std::string> Options::*field) const {
    (options->*field).emplace_back(text);
    return OkStatus();
  }
};

}  // namespace

std::vector<std::string> Aliases(const OptionSpec& spec) {
  std::vector<std::string> names;
  const std::string_view alias = spec.alias;
  for (size_t begin = 0; begin < alias.size();) {
    const size_t comma = std::min(alias.find(',', begin), alias.size());
    names.emplace_back(alias.substr(begin, comma - begin));
    begin = comma + 1;
  }
  return names;
}

const OptionSpec* FindOption(std::string_view name) {
  for (const OptionSpec& spec : OptionTable()) {
    if (name == spec.name) return &spec;
  }
  // Other servers' names, long ones: --ctx-size.
  const std::string flag = "--" + std::string(name);
  for (const OptionSpec& spec : OptionTable()) {
    for (const std::string& other : Aliases(spec)) {
      if (flag == other) return &spec;
    }
  }
  return nullptr;
}

Status SetOption(const OptionSpec& spec, std::string_view text, std::string_view where,
                 Options* options) {
  return std::visit(Setter{spec, text, where, options}, spec.field);
}

}  // namespace lockstep
