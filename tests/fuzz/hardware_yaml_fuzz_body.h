// What tests/fuzz/hardware_yaml_fuzz.cc runs on one input; a test replays the seeds through it.
#pragma once

#include <string>
#include <string_view>

#include "launcher/hardware_yaml.h"
#include "runtime/base/check.h"

namespace lockstep {

// As a cluster and as a catalogue. What is accepted has what predictions divide by.
inline void FuzzHardwareYaml(std::string_view input) {
  const std::string text(input);
  static const HardwareCatalogue catalogue =
      *ParseHardwareCatalogue(std::string(HardwareText()), "hardware.yaml");
  const auto check = [](const planner::Hardware& hardware) {
    LOCKSTEP_CHECK(hardware.nodes >= 1 && hardware.nodes <= 1024);
    LOCKSTEP_CHECK(hardware.node.memory_gib.value > 0 && hardware.node.gb_per_s.value > 0);
    LOCKSTEP_CHECK(hardware.nodes == 1 ||
                   (hardware.link.latency_us.value > 0 && hardware.link.gb_per_s.value > 0));
  };
  if (const auto hardware = ParseHardware(text, "fuzz", catalogue); hardware.ok()) check(*hardware);
  const auto parsed = ParseHardwareCatalogue(text, "fuzz");
  if (!parsed.ok()) return;
  for (const planner::Hardware& preset : parsed->presets) check(preset);
  for (const planner::Engine& engine : parsed->engines)
    LOCKSTEP_CHECK(engine.read_share.value > 0 && engine.read_share.value <= 1);
}

}  // namespace lockstep
