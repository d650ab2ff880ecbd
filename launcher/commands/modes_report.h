// What `lockstep bench modes` found: the figures of every way of dividing a model, whether all gave
// the same tokens, and how that is shown.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "launcher/commands/svg_chart.h"
#include "launcher/mode_report.h"
#include "runtime/base/status.h"

namespace lockstep {

// One way, on so many ranks.
struct ModeRuns {
  std::string mode;  // "single", "pipeline/grpc", "tensor/shm"
  int ranks = 1;
  std::vector<ModeReport> rounds;
  std::string refused;  // why it was left out; empty: it was not

  std::string Name() const;  // "tensor/shm, 2 ranks"
};

struct ModesReport {
  std::string model;  // its name, without folders
  std::string nodes;  // "this machine" or those of the YAML
  int64_t rounds = 0;
  std::vector<ModeRuns> modes;
};

// Where a mode chose another token than the first mode that was measured.
struct TokenDifference {
  std::string mode;
  std::string test;
  int64_t row = 0;
  int64_t token = 0, reference = 0;
  // How clear the choice was, and how far rounding alone may move two logits towards each other
  // (twice the larger logit_error), both in deviations.
  double margin = 0, allowed = 0;
  bool by_rounding() const { return margin <= allowed; }
};
struct TokenComparison {
  std::string reference;  // the mode that the others are compared with
  int64_t compared = 0;   // over all modes but the first, all rounds and all tests
  std::vector<TokenDifference> differences;
};
// An error where modes noted different numbers of tokens.
StatusOr<TokenComparison> CompareTokens(const std::vector<ModeRuns>& modes);

nlohmann::ordered_json ModesToJson(const ModesReport& report, const TokenComparison& tokens);
void PrintModes(const nlohmann::ordered_json& all);
std::string DrawModes(const ModesReport& report);

// OK, or why the comparison does not hold: a mode was refused, or computes something else.
Status VerdictOf(const ModesReport& report, const TokenComparison& tokens);

}  // namespace lockstep
