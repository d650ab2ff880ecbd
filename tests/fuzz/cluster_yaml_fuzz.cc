// Any bytes as a cluster YAML: an error or a checked file, never a crash.
#include <cstddef>
#include <cstdint>
#include <string>

#include "launcher/cluster_yaml.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  (void)lockstep::ParseClusterYaml(std::string(reinterpret_cast<const char*>(data), size), "fuzz");
  return 0;
}
