// What `lockstep plan` knows of hardware: configs/hardware/presets.yaml, which is in the program,
// and files of users that describe one cluster in the same words.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/planner/hardware.h"

namespace lockstep {

struct HardwareCatalogue {
  std::vector<planner::Node> nodes;
  std::vector<planner::Link> links;
  std::vector<planner::Engine> engines;    // of a family, the first is taken unless one is named
  std::vector<planner::Hardware> presets;  // in the order of the file
};

// The text of configs/hardware/presets.yaml.
std::string_view HardwareText();

// `name` stands for the file in errors. Every key, number and name is checked.
StatusOr<HardwareCatalogue> ParseHardwareCatalogue(const std::string& text,
                                                   const std::string& name);
// One cluster, with the keys of a preset; nodes and links are named as in `catalogue`, or described
// with the keys that they have there.
StatusOr<planner::Hardware> ParseHardware(const std::string& text, const std::string& name,
                                          const HardwareCatalogue& catalogue);

// A preset by its name, or the cluster that a file describes. An unknown name is an error with the
// names that there are.
StatusOr<planner::Hardware> FindHardware(const std::string& wanted,
                                         const HardwareCatalogue& catalogue);
// Of a family; empty: the first one. An error lists the family's engines.
StatusOr<planner::Engine> FindEngine(const std::string& wanted, const std::string& family,
                                     const HardwareCatalogue& catalogue);

}  // namespace lockstep
