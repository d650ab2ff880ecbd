#include "launcher/commands/doctor_reports.h"

#include <algorithm>
#include <utility>

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

// Takes in a link as its rank number `side` (0 asked and knows what it takes, 1 answered) saw it.
// Throws what `at` and `get` throw where a member is missing or of another kind.
Status AddLink(const Json& word, int ranks, std::vector<LinkFacts>* links) {
  const Json& seen = word.at("link");
  const auto side = word.at("side").get<int64_t>();
  const auto transport = seen.at("transport").get<std::string>();
  const auto first = seen.at("ranks").at(0).get<int64_t>();
  const auto second = seen.at("ranks").at(1).get<int64_t>();
  if (side < 0 || side > 1 || first < 0 || first >= second || second >= ranks)
    return InternalError("side %d of a link of ranks %d and %d of %d", side, first, second, ranks);
  auto known = std::find_if(links->begin(), links->end(), [&](const LinkFacts& link) {
    return link.transport == transport && link.ranks[0] == first && link.ranks[1] == second;
  });
  if (known == links->end()) {
    links->push_back(
        {.transport = transport, .ranks = {static_cast<int>(first), static_cast<int>(second)}});
    known = std::prev(links->end());
  }
  const Json& end = seen.at("ends").at(side);
  known->ends[side] = {end.at("address").get<std::string>(), end.at("interface").get<std::string>(),
                       end.at("device").get<std::string>(), end.at("mtu").get<int64_t>(),
                       end.at("megabits").get<int64_t>()};
  if (side != 0) return OkStatus();
  known->p50_us = seen.at("p50_us").get<double>();
  known->p99_us = seen.at("p99_us").get<double>();
  known->large_bytes = seen.at("large_bytes").get<int64_t>();
  known->gb_per_s = seen.at("gb_per_s").get<double>();
  known->clock_ahead_ms = seen.at("clock_ahead_ms").get<double>();
  known->clock_within_ms = seen.at("clock_within_ms").get<double>();
  return OkStatus();
}

void AddNew(const std::vector<std::string>& words, std::vector<std::string>* all) {
  for (const std::string& word : words) {
    if (std::find(all->begin(), all->end(), word) == all->end()) all->push_back(word);
  }
}

Status AddNode(Json node, int ranks, DoctorReports* reports) {
  for (const Json& link : node.at("links").get_ref<const Json::array_t&>())
    LOCKSTEP_RETURN_IF_ERROR(AddLink(link, ranks, &reports->links));
  node.erase("links");
  for (const char* key : {"name", "version", "kernels", "rdma"})
    (void)node.at(key).get_ref<const std::string&>();
  for (const char* key : {"cpus", "memory_bytes"}) (void)node.at(key).get<double>();
  (void)node.at("machine").get<std::vector<std::string>>();
  // Ranks of one machine say the same of it.
  AddNew(node.at("faults").get<std::vector<std::string>>(), &reports->faults);
  AddNew(node.at("notes").get<std::vector<std::string>>(), &reports->notes);
  for (const char* key : {"faults", "notes"}) node.erase(key);
  reports->facts.push_back({node["name"].get<std::string>(), node["rdma"].get<std::string>(),
                            node.at("versions").get<std::map<std::string, std::string>>()});
  reports->nodes.push_back(std::move(node));
  return OkStatus();
}

}  // namespace

Json JsonOf(const LinkFacts& link) {
  Json ends = Json::array();
  for (const LinkEnd& end : link.ends) {
    ends.push_back({{"address", end.address},
                    {"interface", end.interface},
                    {"device", end.device},
                    {"mtu", end.mtu},
                    {"megabits", end.megabits}});
  }
  return {{"transport", link.transport},
          {"ranks", link.ranks},
          {"ends", ends},
          {"p50_us", link.p50_us},
          {"p99_us", link.p99_us},
          {"large_bytes", link.large_bytes},
          {"gb_per_s", link.gb_per_s},
          {"nominal_gb_per_s", NominalGbPerS(link)},
          {"clock_ahead_ms", link.clock_ahead_ms},
          {"clock_within_ms", link.clock_within_ms}};
}

Status AddReport(const std::string& text, int rank, int ranks, DoctorReports* reports) {
  Status added;
  try {
    added = AddNode(Json::parse(text), ranks, reports);
  } catch (const Json::exception& error) {
    added = InternalError("%s", error.what());
  }
  if (added.ok()) return added;
  return InternalError("rank %d: its report cannot be read: %s; all ranks must run this build",
                       rank, MessageOf(added));
}

}  // namespace lockstep
