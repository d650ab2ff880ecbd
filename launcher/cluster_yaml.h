// The cluster YAML: its keys are the long flags of OptionTable(), and `nodes:` lists the machines
// in rank order.
//
//     model: /models/GLM-4.7
//     nodes:
//       - address: spark-1            # rank 0: host, or host:port where it gathers the others
//       - address: spark-2
//         share: 2                    # relative work, default 1
//         device: cuda:0              # what it computes on, default cpu
//
// Everything in the file is checked when it is read; errors name file, line and the allowed values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/options.h"
#include "runtime/base/status.h"
#include "runtime/kernels/device_name.h"

namespace lockstep {

struct ClusterNode {
  std::string host;  // name or address, never empty
  int port = 0;      // 0: not given
  double share = 1;  // relative work, > 0 unless other nodes have some
  bool has_share = false;
  int64_t threads = 0;    // 0: not given
  std::string interface;  // empty: not given
  std::optional<kernels::DeviceName> device;
  std::string name;  // for messages; the host if not given
};

struct ClusterFile {
  Options options;  // the defaults with the file's keys over them
  std::vector<ClusterNode> nodes;
};

// The port of rank 0 when the first node's address names none.
inline constexpr int kDefaultRendezvousPort = 29'517;

StatusOr<ClusterFile> ReadClusterYaml(const std::string& path);
// `name` stands for the file in errors.
StatusOr<ClusterFile> ParseClusterYaml(const std::string& text, const std::string& name);

// The text of a cluster YAML with this number for an option, in place of its line or at the end;
// other lines as they are. An error if that makes no such file, as with one in flow style.
StatusOr<std::string> WithNumber(const std::string& text, const std::string& name,
                                 std::string_view option, int64_t number);
// Writes several into the file, whose mode stays; a link stays one.
Status RecordNumbers(const std::string& path,
                     std::span<const std::pair<std::string_view, int64_t>> numbers);

// "host", "host:port", "[v6]" or "[v6]:port" to its parts; port 0 if absent.
StatusOr<ClusterNode> ParseAddress(std::string_view text, std::string_view where);

}  // namespace lockstep
