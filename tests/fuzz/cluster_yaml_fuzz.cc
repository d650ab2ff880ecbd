// Any bytes as a cluster YAML: an error or a checked file, never a crash. What is recorded in one
// leaves its nodes as they are.
#include <cstddef>
#include <cstdint>
#include <string>

#include "launcher/cluster_yaml.h"
#include "runtime/base/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lockstep;
  const std::string text(reinterpret_cast<const char*>(data), size);
  const StatusOr<ClusterFile> file = ParseClusterYaml(text, "fuzz");
  if (!file.ok()) return 0;
  const StatusOr<std::string> changed = WithNumber(text, "fuzz", "direct-sum-bytes", 4096);
  if (!changed.ok()) return 0;
  const StatusOr<ClusterFile> again = ParseClusterYaml(*changed, "fuzz");
  LOCKSTEP_CHECK(again.ok() && again->nodes.size() == file->nodes.size() &&
                 again->options.model == file->options.model);
  return 0;
}
