#include "launcher/commands/diagnosis.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"

namespace lockstep {
namespace {

// Below this share of its nominal speed something is wrong with a link: TCP on one core reaches
// more where the interface is slower than memory.
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

std::string DifferentMtu(const std::vector<NodeFacts>& nodes, const LinkFacts& link) {
  const LinkEnd &first = link.ends[0], &second = link.ends[1];
  if (first.mtu == 0 || second.mtu == 0 || first.mtu == second.mtu) return "";
  const int low = first.mtu < second.mtu ? 0 : 1;
  return absl::StrFormat(
      "%s: the MTU of %s is %d and that of %s is %d; on %s: ip link set dev %s mtu %d (the switch "
      "must allow it too)",
      NameOf(nodes, link), first.interface, first.mtu, second.interface, second.mtu,
      nodes[link.ranks[low]].name, link.ends[low].interface, link.ends[1 - low].mtu);
}

std::string BelowNominal(const std::vector<NodeFacts>& nodes, const LinkFacts& link) {
  const double nominal = NominalGbPerS(link);
  if (nominal == 0 || link.gb_per_s >= kFairShare * nominal) return "";
  return absl::StrFormat(
      "%s: %.2f GB/s at 20 MB, %.0f %% of the %.2f GB/s of %s and %s; look for errors (ip -s "
      "link), "
      "a small MTU, a slot with few PCIe lanes, or use --collective rdma",
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

void FindFaults(const std::vector<NodeFacts>& nodes, const std::vector<LinkFacts>& links,
                std::vector<std::string>* findings) {
  for (const LinkFacts& link : links) {
    std::vector<double> all_us;
    for (const LinkFacts& other : links) {
      if (other.transport == link.transport) all_us.push_back(other.p50_us);
    }
    for (std::string& finding :
         std::vector<std::string>{DifferentMtu(nodes, link), BelowNominal(nodes, link),
                                  FarBehind(nodes, link, Median(all_us))}) {
      if (!finding.empty()) findings->push_back(std::move(finding));
    }
    // Once per pair, not per transport.
    const bool seen = std::any_of(&links.front(), &link, [&](const LinkFacts& other) {
      return std::equal(other.ranks, other.ranks + 2, link.ranks);
    });
    if (std::string apart = ClocksApart(nodes, link); !seen && !apart.empty())
      findings->push_back(std::move(apart));
  }
  const auto usable = [](const NodeFacts& node) { return node.rdma.empty(); };
  if (std::none_of(nodes.begin(), nodes.end(), usable)) return;
  for (const NodeFacts& node : nodes) {
    if (!usable(node)) {
      findings->push_back(
          absl::StrFormat("%s has no RDMA and others have: %s", node.name, node.rdma));
    }
  }
}

}  // namespace

double NominalGbPerS(const LinkFacts& link) {
  return static_cast<double>(std::min(link.ends[0].megabits, link.ends[1].megabits)) / 8000;
}

Diagnosis Diagnose(const std::vector<NodeFacts>& nodes, const std::vector<LinkFacts>& links) {
  Diagnosis diagnosis;
  Choose(links, &diagnosis);
  diagnosis.slowest = Slowest(links, diagnosis.transport);
  FindFaults(nodes, links, &diagnosis.findings);
  return diagnosis;
}

}  // namespace lockstep
