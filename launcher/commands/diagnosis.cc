#include "launcher/commands/diagnosis.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "absl/strings/str_format.h"

namespace lockstep {
namespace {

// Below this share of its nominal speed a link that is used deserves a look.
constexpr double kFairShare = 0.5;
// A link is far behind when it takes so many times the median of its transport.
constexpr double kFarBehind = 3;
constexpr double kClocksApartMs = 1000;

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>((values.size() - 1) / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

std::string NameOf(const std::vector<NodeFacts>& nodes, const LinkFacts& link) {
  return absl::StrFormat("%s between %s and %s", link.transport, nodes[link.ranks[0]].name,
                         nodes[link.ranks[1]].name);
}

// The transport whose worst pair is the fastest: a step ends when its slowest message is there.
void Choose(const std::vector<LinkFacts>& links, Diagnosis* diagnosis) {
  std::vector<std::pair<double, std::string>> worst_us;  // in the order of the links
  for (const LinkFacts& link : links) {
    auto known = std::find_if(worst_us.begin(), worst_us.end(),
                              [&](const auto& item) { return item.second == link.transport; });
    if (known == worst_us.end()) {
      worst_us.emplace_back(link.p50_us, link.transport);
    } else {
      known->first = std::max(known->first, link.p50_us);
    }
  }
  std::stable_sort(worst_us.begin(), worst_us.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  diagnosis->transport = worst_us.front().second;
  for (const auto& [us, transport] : worst_us) {
    diagnosis->why +=
        absl::StrFormat("%s%s %.1f us", diagnosis->why.empty() ? "" : ", ", transport, us);
  }
  diagnosis->why = "10 KB take, between the two ranks that are farthest apart: " + diagnosis->why;
}

const LinkFacts* Slowest(const std::vector<LinkFacts>& links, const std::string& transport) {
  const LinkFacts* slowest = nullptr;
  for (const LinkFacts& link : links) {
    if (link.transport != transport) continue;
    if (slowest == nullptr || link.gb_per_s < slowest->gb_per_s) slowest = &link;
  }
  return slowest;
}

// An interface whose MTU is below that of another it is connected with.
std::string LowMtu(const std::vector<NodeFacts>& nodes, const LinkFacts& link, int side) {
  const LinkEnd &own = link.ends[side], &other = link.ends[1 - side];
  if (own.mtu == 0 || own.mtu >= other.mtu) return "";
  return absl::StrFormat(
      "%s: the MTU of %s is %d, at the other end of its links %d; ip link set dev %s mtu %d (the "
      "switch must allow it too)",
      nodes[link.ranks[side]].name, own.interface, own.mtu, other.mtu, own.interface, other.mtu);
}

std::string BelowNominal(const std::vector<NodeFacts>& nodes, const LinkFacts& link) {
  const double nominal = NominalGbPerS(link);
  if (nominal == 0 || link.gb_per_s >= kFairShare * nominal) return "";
  return absl::StrFormat(
      "%s: %.2f GB/s, %.0f %% of the %.2f GB/s of %s and %s; look for errors (ip -s link), a small "
      "MTU, a slot with few PCIe lanes; one core moves 2 to 5 GB/s by TCP, RDMA more",
      NameOf(nodes, link), link.gb_per_s, 100 * link.gb_per_s / nominal, nominal,
      link.ends[0].interface, link.ends[1].interface);
}

std::string ClocksApart(const std::vector<NodeFacts>& nodes, const LinkFacts& link) {
  if (std::abs(link.clock_ahead_ms) < kClocksApartMs + link.clock_within_ms) return "";
  return absl::StrFormat(
      "the clock of %s is %.1f s %s that of %s: logs cannot be compared; run an NTP client on both",
      nodes[link.ranks[1]].name, std::abs(link.clock_ahead_ms) / 1000,
      link.clock_ahead_ms > 0 ? "ahead of" : "behind", nodes[link.ranks[0]].name);
}

std::string FarBehind(const std::vector<NodeFacts>& nodes, const LinkFacts& link,
                      double median_us) {
  if (link.p50_us < kFarBehind * median_us) return "";
  return absl::StrFormat(
      "%s: 10 KB take %.1f us, the median of all pairs is %.1f us; is it another switch, Wi-Fi, or "
      "another interface (--interface)?",
      NameOf(nodes, link), link.p50_us, median_us);
}

void RdmaMissing(const std::vector<NodeFacts>& nodes, Diagnosis* diagnosis) {
  const auto usable = [](const NodeFacts& node) { return node.rdma.empty(); };
  if (std::none_of(nodes.begin(), nodes.end(), usable)) return;
  for (const NodeFacts& node : nodes) {
    if (usable(node)) continue;
    diagnosis->findings.push_back(
        absl::StrFormat("%s has no RDMA and others have: %s", node.name, node.rdma));
  }
}

void FindFaults(const std::vector<NodeFacts>& nodes, const std::vector<LinkFacts>& links,
                Diagnosis* diagnosis) {
  const auto add = [&](const std::string& finding) {
    auto& all = diagnosis->findings;
    if (!finding.empty() && std::find(all.begin(), all.end(), finding) == all.end())
      all.push_back(finding);
  };
  std::vector<double> all_us;
  for (const LinkFacts& link : links) {
    if (link.transport == diagnosis->transport) all_us.push_back(link.p50_us);
  }
  std::vector<std::pair<int, int>> clocks;  // pairs that were compared
  for (const LinkFacts& link : links) {
    for (const int side : {0, 1}) add(LowMtu(nodes, link, side));
    const std::pair<int, int> pair{link.ranks[0], link.ranks[1]};
    if (std::find(clocks.begin(), clocks.end(), pair) == clocks.end())
      add(ClocksApart(nodes, link));
    clocks.push_back(pair);
    if (link.transport != diagnosis->transport) continue;
    add(BelowNominal(nodes, link));
    add(FarBehind(nodes, link, Median(all_us)));
  }
  RdmaMissing(nodes, diagnosis);
}

}  // namespace

std::vector<std::string> DifferingVersions(const std::vector<NodeFacts>& nodes) {
  std::map<std::string, std::map<std::string, std::string>> seen;  // what, version, the first node
  for (const NodeFacts& node : nodes) {
    for (const auto& [what, version] : node.versions) seen[what].emplace(version, node.name);
  }
  std::vector<std::string> findings;
  for (const auto& [what, versions] : seen) {
    if (versions.size() < 2) continue;
    std::string list;
    for (const auto& [version, name] : versions)
      list += absl::StrFormat("%s%s on %s", list.empty() ? "" : ", ", version, name);
    findings.push_back(absl::StrFormat(
        "%s differ: %s; bring all to the newest (firmware: fwupdmgr update, or the maker's tool)",
        what, list));
  }
  return findings;
}

double NominalGbPerS(const LinkFacts& link) {
  return static_cast<double>(std::min(link.ends[0].megabits, link.ends[1].megabits)) / 8000;
}

Diagnosis Diagnose(const std::vector<NodeFacts>& nodes, const std::vector<LinkFacts>& links) {
  Diagnosis diagnosis;
  Choose(links, &diagnosis);
  diagnosis.slowest = Slowest(links, diagnosis.transport);
  FindFaults(nodes, links, &diagnosis);
  return diagnosis;
}

}  // namespace lockstep
