// From argv to a command and its options: flags come from OptionTable(), values of the --config
// file stand below those of the command line.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/options.h"
#include "runtime/base/status.h"

namespace lockstep {

struct CommandLine {
  std::string command;  // "run"; empty when only `text` is to be printed
  Options options;
  std::string text;                   // help or version, for stdout
  std::vector<std::string> warnings;  // one sentence each, for stderr
};

// `arguments` without argv[0]. Refuses unknown commands, flags and values with a UsageError that
// suggests the nearest known one. Reads the YAML that --config names.
StatusOr<CommandLine> ParseCommandLine(std::span<const std::string> arguments);

// All that ParseCommandLine knows, in the order of the help.
std::vector<std::string> CommandNames();

// The group of flags that `option` stands under in the help; empty if nobody sorted it in.
std::string_view OptionGroup(std::string_view option);

// As --log-level and --log-format say; `rank` < 0: one of many is not told from the others.
void ConfigureLog(const Options& options, int rank);

}  // namespace lockstep
