#include "launcher/measured.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "runtime/base/lines.h"
#include "runtime/weights/bounded_json.h"

namespace lockstep {
namespace {

using nlohmann::json;

// What the system and other programs need of a node's memory, as where ranks start.
constexpr double kKeptBack = 0.06;
constexpr double kGib = 1024.0 * 1024 * 1024;
constexpr double kLargest = 1e18;
constexpr size_t kMostRanks = 1024;
constexpr size_t kMostTests = 4096;

// A number of a printed line; throws json::exception where it is none, and where it is no measure.
double Positive(const json& value) {
  const auto number = value.get<double>();
  if (std::isfinite(number) && number > 0 && number < kLargest) return number;
  throw json::other_error::create(501, absl::StrFormat("%g is no measure", number), &value);
}

void CheckRanks(double ranks, const json& line) {
  if (ranks > kMostRanks)
    throw json::other_error::create(501, absl::StrFormat("%g ranks", ranks), &line);
}

MeasuredTest TestOf(const json& test, const json& line, int ranks) {
  MeasuredTest found;
  found.decode = test.at("test").get<std::string>() == "decode";
  found.ranks = ranks;
  found.tokens = Positive(test.at("tokens"));
  found.tokens_per_s = Positive(test.at("tokens_per_second").at("median"));
  if (found.decode) {
    // A context may be empty.
    found.context = Positive(json(test.at("context").get<double>() + 1)) - 1;
    found.batch = Positive(test.at("batch"));
  } else {
    found.chunk = Positive(line.at("prefill_chunk"));
  }
  return found;
}

void AddBench(const json& line, Measured* measured) {
  const double ranks = Positive(line.at("ranks"));
  CheckRanks(ranks, line);
  const std::string source = "measured by lockstep bench";
  measured->ranks = static_cast<int>(ranks);
  const json& read = line.at("read_gb_per_s");
  measured->gb_per_s = {(Positive(read.at("before")) + Positive(read.at("after"))) / 2 / ranks,
                        source};
  measured->tops = {Positive(line.at("peak_gop_per_s")) / 1000 / ranks, source};
  // Those of a pipeline are of another way of dividing.
  if (!line.contains("tests") || line.value("mode", "tensor") != "tensor") return;
  for (const json& test : line.at("tests")) {
    // As of a network that is not there.
    if (test.value("added_latency_us", 0.0) > 0) continue;
    if (measured->tests.size() < kMostTests)
      measured->tests.push_back(TestOf(test, line, measured->ranks));
  }
}

void AddDoctor(const json& line, Measured* measured) {
  const std::string source = "measured by lockstep doctor";
  const json& nodes = line.at("ranks");
  // Each rank says what all of its host has.
  std::map<std::string, double> ranks_of;
  bool divided = true;
  for (const json& node : nodes) {
    divided = divided && node.contains("host");
    if (divided) ++ranks_of[node.at("host").get<std::string>()];
  }
  double least = kLargest;
  for (const json& node : nodes) {
    const double ranks = divided ? ranks_of[node.at("host").get<std::string>()] : 1;
    least = std::min(least, Positive(node.at("memory_bytes")) / ranks);
  }
  if (least < kLargest) {
    measured->memory_gib = {least / kGib * (1 - kKeptBack), source};
    measured->memory_is_divided = divided;
  }
  CheckRanks(static_cast<double>(nodes.size()), line);
  if (!nodes.empty()) measured->ranks = static_cast<int>(nodes.size());
  const auto transport = line.at("collective").get<std::string>();
  planner::Link link{transport.substr(0, 32)};
  for (const json& pair : line.at("links")) {
    if (pair.at("transport").get<std::string>() != transport) continue;
    const double latency = Positive(pair.at("p50_us"));
    const double gb_per_s = Positive(pair.at("gb_per_s"));
    if (latency > link.latency_us.value) link.latency_us = {latency, source};
    if (!link.gb_per_s.known() || gb_per_s < link.gb_per_s.value)
      link.gb_per_s = {gb_per_s, source};
  }
  if (link.latency_us.known()) measured->link = link;
}

}  // namespace

StatusOr<Measured> ParseMeasured(std::string_view text, const std::string& name) {
  Measured measured;
  Lines lines(text);
  for (std::string_view word; lines.Next(&word);) {
    const json line = ParseBoundedJson(word);
    try {
      if (line.is_object() && line.contains("read_gb_per_s") && line.contains("peak_gop_per_s")) {
        AddBench(line, &measured);
      } else if (line.is_object() && line.contains("links")) {
        AddDoctor(line, &measured);
      } else {
        return UsageError("%s:%d: not what doctor, bench decode or bench prefill print with --json",
                          name, lines.number());
      }
    } catch (const json::exception& error) {
      return UsageError("%s:%d: not as the command printed it: %s", name, lines.number(),
                        error.what());
    }
  }
  return measured;
}

void Apply(const Measured& measured, const planner::Engine& engine, planner::Hardware* hardware) {
  // A share of a datasheet's figure has in it what a test of the memory would find.
  const auto put = [&](const planner::Figure& found, planner::Figure* figure) {
    if (!found.known()) return;
    if (engine.of_measured || !figure->known()) {
      *figure = found;
    } else {
      absl::StrAppendFormat(&figure->source, "; %.4g %s, but %s's share is of the datasheet's",
                            found.value, found.source, engine.name);
    }
  };
  put(measured.gb_per_s, &hardware->node.gb_per_s);
  put(measured.tops, &hardware->node.tops);
  planner::Figure& memory = hardware->node.memory_gib;
  if (measured.memory_gib.known() &&
      (measured.memory_is_divided || !memory.known() || measured.memory_gib.value < memory.value))
    memory = measured.memory_gib;
  if (measured.link.latency_us.known()) hardware->link = measured.link;
}

}  // namespace lockstep
