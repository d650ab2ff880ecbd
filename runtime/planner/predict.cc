#include "runtime/planner/predict.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_format.h"
#include "runtime/base/largest.h"
#include "runtime/planner/seats.h"
#include "runtime/planner/step_time.h"

namespace lockstep::planner {
namespace {

constexpr double kGib = 1024.0 * 1024 * 1024;

double Gib(uint64_t bytes) { return static_cast<double>(bytes) / kGib; }

// What all ways share.
class Predictor {
 public:
  Predictor(const CountedModel& model, const Hardware& hardware, const Engine& engine,
            const Load& load)
      : hardware_(hardware),
        engine_(engine),
        load_(load),
        times_(model, hardware, engine, load),
        most_positions_(model.config.max_position_embeddings) {}

  Way Examine(std::string name, const std::vector<Seat>& seats) const;

 private:
  double AvailableBytes() const {
    return (hardware_.node.memory_gib.value + hardware_.node.slow_gib.value) * kGib;
  }
  bool Fits(const std::vector<Seat>& seats, int64_t users, int64_t context) const;
  int64_t MostContext(const std::vector<Seat>& seats, int64_t users) const;
  void CheckMemory(const std::vector<Seat>& seats, Way* way) const;
  std::string WhyNot(const std::vector<Seat>& seats, const Way& way) const;
  std::string WhatWouldFit(const std::vector<Seat>& seats, const Way& way) const;
  bool EngineHas(const std::string& way) const;
  void PredictDecode(const std::vector<Station>& seats, Way* way) const;
  void PredictPrompt(const std::vector<Station>& seats, Way* way) const;
  void PredictCost(size_t ranks, Way* way) const;

  Parts TensorStep(const std::vector<Station>& seats, double users) const;
  Parts PipelineRound(const std::vector<Station>& seats, double users) const;
  Parts TensorPrompt(const std::vector<Station>& seats) const;
  Parts PipelinePrompt(const std::vector<Station>& seats) const;
  template <typename Visit>
  void ForEachChunk(const Visit& visit) const;

  const Hardware& hardware_;
  const Engine& engine_;
  const Load& load_;
  const StepTimes times_;
  const int64_t most_positions_;
};

bool Predictor::Fits(const std::vector<Seat>& seats, int64_t users, int64_t context) const {
  return std::all_of(seats.begin(), seats.end(), [&](const Seat& seat) {
    return static_cast<double>(MemoryOf(seat, load_, users, context).total()) <= AvailableBytes();
  });
}

int64_t Predictor::MostContext(const std::vector<Seat>& seats, int64_t users) const {
  return LargestThatFits(1, most_positions_,
                         [&](int64_t context) { return Fits(seats, users, context); });
}

void Predictor::CheckMemory(const std::vector<Seat>& seats, Way* way) const {
  for (const Seat& seat : seats)
    way->ranks.push_back(MemoryOf(seat, load_, load_.users, load_.context));
  way->max_context = MostContext(seats, load_.users);
  way->fits = load_.context <= way->max_context;
  if (!way->fits) way->reason = WhyNot(seats, *way);
}

std::string Predictor::WhyNot(const std::vector<Seat>& seats, const Way& way) const {
  if (load_.context > most_positions_)
    return absl::StrFormat("the model has %d positions; lower --context", most_positions_);
  const auto largest =
      std::max_element(way.ranks.begin(), way.ranks.end(),
                       [](const auto& a, const auto& b) { return a.total() < b.total(); });
  return absl::StrFormat(
      "rank %d needs %.1f GiB (weights %.1f, KV cache of %d x %d positions %.1f, scratch %.1f) and "
      "may use %.1f GiB; %s",
      largest - way.ranks.begin(), Gib(largest->total()), Gib(largest->weight_bytes), load_.users,
      load_.context, Gib(largest->kv_bytes), Gib(largest->scratch_bytes), AvailableBytes() / kGib,
      WhatWouldFit(seats, way));
}

std::string Predictor::WhatWouldFit(const std::vector<Seat>& seats, const Way& way) const {
  const int64_t users = LargestThatFits(
      1, load_.users - 1, [&](int64_t count) { return Fits(seats, count, load_.context); });
  std::string advice;
  if (way.max_context > 0) advice = absl::StrFormat("--context %d would fit", way.max_context);
  if (users > 0)
    absl::StrAppendFormat(&advice, "%s--users %d would fit", advice.empty() ? "" : ", or ", users);
  if (!advice.empty()) return advice;
  const int64_t alone = MostContext(seats, 1);
  if (alone > 0) return absl::StrFormat("--users 1 --context %d would fit: lower --users", alone);
  const bool weights_fit = std::all_of(seats.begin(), seats.end(), [&](const Seat& seat) {
    return static_cast<double>(seat.WeightBytes(load_)) <= AvailableBytes();
  });
  if (weights_fit)
    return "its weights fit, but not one token beside them: lower --prefill-chunk, or take more "
           "memory";
  return "its weights need more nodes, more memory or fewer bits";
}

bool Predictor::EngineHas(const std::string& way) const {
  const std::vector<std::string>& ways = engine_.ways;
  return ways.empty() || std::find(ways.begin(), ways.end(), way) != ways.end();
}

Parts Predictor::TensorStep(const std::vector<Station>& seats, double users) const {
  Parts slowest;
  for (const Station& seat : seats)
    slowest = std::max(slowest, times_.Decode(seat, users), Shorter);
  const auto depth = static_cast<double>(load_.draft_acceptance.size());
  const auto ranks = static_cast<double>(seats.size());
  // A draft joins its inputs, sums twice and chooses a token.
  slowest.exchange = times_.ExchangesPerStep() *
                         times_.SumSeconds(times_.BytesOfRows(users * (1 + depth)), ranks) +
                     depth * 4 * times_.SumSeconds(times_.BytesOfRows(users), ranks);
  return slowest;
}

Parts Predictor::PipelineRound(const std::vector<Station>& seats, double users) const {
  const auto stages = static_cast<double>(seats.size());
  const double groups = engine_.in_turns ? std::min(users, stages) : 1;
  const double rows = users / groups * static_cast<double>(1 + load_.draft_acceptance.size());
  Parts once, slowest;
  for (const Station& seat : seats) {
    Parts stage = times_.Decode(seat, users / groups);
    stage.exchange = times_.HopSeconds(times_.BytesOfRows(rows));
    once = once + stage;
    slowest = std::max(slowest, stage, Shorter);
  }
  // A group goes through all stages before its next token; the slowest stage takes all groups.
  return std::max(once, groups * slowest, Shorter);
}

template <typename Visit>
void Predictor::ForEachChunk(const Visit& visit) const {
  const int64_t chunk = std::max<int64_t>(1, load_.chunk);
  for (int64_t at = load_.context - load_.prompt; at < load_.context; at += chunk) {
    visit(static_cast<double>(at), static_cast<double>(std::min(at + chunk, load_.context)));
  }
}

Parts Predictor::TensorPrompt(const std::vector<Station>& seats) const {
  Parts all;
  ForEachChunk([&](double begin, double end) {
    Parts slowest;
    for (const Station& seat : seats)
      slowest = std::max(slowest, times_.Chunk(seat, begin, end), Shorter);
    slowest.exchange =
        times_.ExchangesPerStep() *
        times_.SumSeconds(times_.BytesOfRows(end - begin), static_cast<double>(seats.size()));
    all = all + slowest;
  });
  return all;
}

Parts Predictor::PipelinePrompt(const std::vector<Station>& seats) const {
  Parts all, slowest, last;  // of all stages, of the slowest one, and of the last chunk
  for (const Station& seat : seats) {
    Parts stage, chunk;
    ForEachChunk([&](double begin, double end) {
      chunk = times_.Chunk(seat, begin, end);
      chunk.exchange = times_.HopSeconds(times_.BytesOfRows(end - begin));
      stage = stage + chunk;
    });
    all = all + stage;
    last = last + chunk;
    slowest = std::max(slowest, stage, Shorter);
  }
  if (!engine_.in_turns) return all;
  // The last chunk leaves the slowest stage after all others, and goes on through the rest.
  const double rest = 1 - 1 / static_cast<double>(seats.size());
  const Parts turns = slowest + rest * last;
  return std::min(all, turns, Shorter);
}

void Predictor::PredictDecode(const std::vector<Station>& seats, Way* way) const {
  double tokens = 1, right = 1;  // of one user's step
  for (const double acceptance : load_.draft_acceptance) tokens += right *= acceptance;
  std::vector<int64_t> counts;
  for (int64_t users = 1; users < load_.users; users *= 2) counts.push_back(users);
  counts.push_back(load_.users);
  for (const int64_t count : counts) {
    const auto users = static_cast<double>(count);
    const Parts step =
        way->name == "pipeline" ? PipelineRound(seats, users) : TensorStep(seats, users);
    way->decode.push_back({count, users * tokens / step.total(), step});
  }
}

void Predictor::PredictPrompt(const std::vector<Station>& seats, Way* way) const {
  if (!times_.KnowsArithmetic()) {
    way->prefill_reason =
        hardware_.node.tops.known()
            ? "how much of the arithmetic " + engine_.name + " uses for prompts is not known"
            : "the node's arithmetic is not known: give its 'tops', or what `lockstep bench "
              "prefill "
              "--json` prints in --measured; decoding is of reading alone";
    return;
  }
  way->prefill = way->name == "pipeline" ? PipelinePrompt(seats) : TensorPrompt(seats);
  way->prefill_tokens_per_s = static_cast<double>(load_.prompt) / way->prefill.total();
  way->ttft_s = way->prefill.total() + way->decode.front().step.total();
}

void Predictor::PredictCost(size_t ranks, Way* way) const {
  const auto nodes = static_cast<double>(ranks);
  const double watts = nodes * hardware_.node.watts.value;
  way->joules_per_token = watts / way->decode.front().tokens_per_s;
  const double hours = hardware_.hours_per_day.value * 365 / 12;
  way->power_usd_per_month = watts * 1e-3 * hours * hardware_.usd_per_kwh.value;
  way->purchase_usd = hardware_.price_usd.value * nodes / hardware_.nodes;
  const double saved = hardware_.cloud_usd_per_month.value - way->power_usd_per_month;
  if (!hardware_.price_usd.known()) {
    way->cost_reason = "what the nodes cost is not known: price-usd";
  } else if (!hardware_.cloud_usd_per_month.known()) {
    way->cost_reason = "what is rented instead is not known: cloud-usd-per-month";
  } else if (ranks != static_cast<size_t>(hardware_.cloud_nodes)) {
    way->cost_reason = absl::StrFormat("the cloud's price stands against %d nodes, not %d",
                                       hardware_.cloud_nodes, ranks);
  } else if (saved <= 0) {
    way->cost_reason = "power costs more than the cloud";
  } else {
    way->months_to_break_even = way->purchase_usd / saved;
  }
}

Way Predictor::Examine(std::string name, const std::vector<Seat>& seats) const {
  Way way;
  way.name = std::move(name);
  CheckMemory(seats, &way);
  if (way.name != "single" && seats.size() < 2) {
    way.fits = false;
    way.max_context = 0;
    way.reason = "one node has nobody to divide the model with; --ranks says how many there are";
  }
  if (!way.fits) return way;
  if (!EngineHas(way.name)) {
    way.measured = false;
    way.reason = absl::StrFormat(
        "%s does not divide models so: these are its constants, and no program was measured; "
        "--engine names others, if any was measured on such machines",
        engine_.name);
  }
  const std::vector<Station> stations = times_.StationsOf(seats);
  PredictDecode(stations, &way);
  PredictPrompt(stations, &way);
  PredictCost(seats.size(), &way);
  return way;
}

}  // namespace

std::string Parts::Longest() const {
  const std::pair<double, const char*> parts[] = {{read, "memory bandwidth"},
                                                  {slow_read, "memory behind the card"},
                                                  {arithmetic, "arithmetic"},
                                                  {exchange, "exchange"}};
  return std::max_element(std::begin(parts), std::end(parts),
                          [](const auto& a, const auto& b) { return a.first < b.first; })
      ->second;
}

StatusOr<CountedModel> CountModel(const Checkpoint& checkpoint, const std::vector<double>& shares) {
  CountedModel model;
  LOCKSTEP_ASSIGN_OR_RETURN(model.config, ConfigOf(checkpoint));
  model.shares = shares;
  const CutUnits units = CutUnitsOf(checkpoint);
  model.whole_cuts = CutModel(model.config, {1}, units);
  model.cuts = CutModel(model.config, shares, units);
  const std::vector<int64_t> kinds = FirstOfKind(model.config, checkpoint);
  LOCKSTEP_ASSIGN_OR_RETURN(model.whole,
                            CountBytes(model.config, checkpoint, model.whole_cuts, 0, kinds));
  for (size_t rank = 0; rank < shares.size(); ++rank) {
    LOCKSTEP_ASSIGN_OR_RETURN(
        model.slices.emplace_back(),
        CountBytes(model.config, checkpoint, model.cuts, static_cast<int>(rank), kinds));
  }
  return model;
}

Answer Predict(const CountedModel& model, const Hardware& hardware, const Engine& engine,
               const Load& load) {
  const Predictor predictor(model, hardware, engine, load);
  return {predictor.Examine("single", WholeModel(model)),
          predictor.Examine("pipeline", PipelineStages(model)),
          predictor.Examine("tensor", TensorSlices(model))};
}

}  // namespace lockstep::planner
