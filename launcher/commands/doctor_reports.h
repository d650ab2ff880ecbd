// What the ranks of `lockstep doctor` tell rank 0, each as a text of JSON.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "launcher/commands/diagnosis.h"
#include "runtime/base/status.h"

namespace lockstep {

// A link as the report prints it, and as a rank tells of it.
nlohmann::ordered_json JsonOf(const LinkFacts& link);

struct DoctorReports {
  std::vector<nlohmann::ordered_json> nodes;  // by rank: name, version, machine, ...
  std::vector<NodeFacts> facts;               // by rank
  std::vector<LinkFacts> links;
  std::vector<std::string> faults;  // of machines, each once
  std::vector<std::string> notes;
};

// Takes in what `rank`, the next of `ranks`, says. An error names the rank and what is wrong.
Status AddReport(const std::string& text, int rank, int ranks, DoctorReports* reports);

}  // namespace lockstep
