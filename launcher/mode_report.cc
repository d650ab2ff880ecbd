#include "launcher/mode_report.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "launcher/node_answer.h"
#include "runtime/weights/bounded_json.h"

namespace lockstep {
namespace {

using nlohmann::json;

constexpr double kLargest = 1e18;
constexpr int64_t kMostTokens = int64_t{1} << 40;

// These throw json::exception where the value is none of theirs.
double Number(const json& value) {
  const auto number = value.get<double>();
  if (std::isfinite(number) && number >= 0 && number < kLargest) return number;
  throw json::other_error::create(501, absl::StrFormat("%g is no measure", number), &value);
}

int64_t Count(const json& value) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > static_cast<uint64_t>(kMostTokens))
    throw json::other_error::create(501, "no count", &value);
  return value.get<int64_t>();
}

const json& NotEmpty(const json& list) {
  if (list.is_array() && !list.empty()) return list;
  throw json::other_error::create(501, "an empty list", &list);
}

std::string Word(const json& value) {
  return Printable(value.get_ref<const std::string&>(), false);
}

ModeTest TestOf(const json& test) {
  ModeTest found;
  found.test = Word(test.at("test"));
  found.tokens = Count(test.at("tokens"));
  found.added_latency_us = Count(test.at("added_latency_us"));
  for (const json& rate : NotEmpty(test.at("tokens_per_second").at("samples")))
    found.tokens_per_s.push_back(Number(rate));
  found.share = Number(test.at(found.test == "decode" ? "share_of_bandwidth" : "share_of_peak"));
  if (test.contains("wire_bytes_per_token"))
    found.wire_bytes = Number(test.at("wire_bytes_per_token"));
  for (const json& rank : NotEmpty(test.at("us_per_token"))) {
    found.ranks.push_back({Number(rank.at("compute")), Number(rank.at("exchange")),
                           Number(rank.at("waiting")), Number(rank.at("rest"))});
  }
  for (const json& best : test.at("best_tokens"))
    found.best.push_back({Count(best.at("token")), Number(best.at("margin"))});
  return found;
}

}  // namespace

StatusOr<ModeReport> ParseModeReport(std::string_view text) {
  const json all = ParseBoundedJson(text);
  ModeReport report;
  try {
    report.kernels = Word(all.at("kernels"));
    report.threads = Count(all.at("threads"));
    const json& read = all.at("read_gb_per_s");
    report.gb_per_s = (Number(read.at("before")) + Number(read.at("after"))) / 2;
    report.logit_error = Number(all.at("logit_error"));
    for (const json& test : NotEmpty(all.at("tests"))) report.tests.push_back(TestOf(test));
  } catch (const json::exception& error) {
    return InternalError("not what `lockstep bench steps --json` prints: %s",
                         Printable(error.what(), false));
  }
  return report;
}

}  // namespace lockstep
