#include "launcher/simulate/step_model.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace lockstep {
namespace {

using planner::Parts;
using planner::Shorter;
using planner::StepRows;

// A calibration is of a machine, not of a mistake.
constexpr double kLeastFactor = 0.05, kMostFactor = 1000;

// The rows of a test of `lockstep bench decode`, whose tokens read on average so many positions.
StepRows DecodeRows(const MeasuredTest& test) {
  const double positions = test.batch * (test.context + (test.tokens + 1) / 2);
  return {.decodes = test.batch,
          .outputs = test.batch,
          .cached = positions,
          .decode_positions = positions};
}

}  // namespace

StepRows RowsOf(const StepPlan& plan) {
  StepRows rows;
  for (const RowSpan& span : plan.spans) {
    const double end = span.begin + span.count;
    const bool samples = span.output == SpanOutput::kSample;
    rows.cached += end;
    rows.outputs += samples ? 1 : 0;
    if (samples && span.count == 1) {
      rows.decodes += 1;
      rows.decode_positions += end;
    } else {
      rows.prompt_rows += span.count;
      rows.prompt_positions += span.count * (span.begin + end) / 2;
    }
  }
  return rows;
}

StepModel::StepModel(SimulatedCluster cluster)
    : cluster_(std::move(cluster)),
      times_(cluster_.model, cluster_.hardware, cluster_.engine, cluster_.load),
      stations_(times_.StationsOf(cluster_.model.shares.size() > 1
                                      ? planner::TensorSlices(cluster_.model)
                                      : planner::WholeModel(cluster_.model))) {}

StatusOr<std::unique_ptr<StepModel>> StepModel::Create(SimulatedCluster cluster,
                                                       const std::vector<MeasuredTest>& tests) {
  std::unique_ptr<StepModel> model(new StepModel(std::move(cluster)));
  model->Calibrate(tests);
  const size_t ranks = model->stations_.size();
  // What goes around a ring is a program's own affair.
  if (ranks > 1 && ranks <= kMostRanks && !model->cluster_.engine.ring)
    LOCKSTEP_RETURN_IF_ERROR(model->OpenMessages());
  return model;
}

Status StepModel::OpenMessages() {
  const planner::Link& link = cluster_.hardware.link;
  MessageOptions options;
  options.ranks = static_cast<int>(stations_.size());
  options.latency_us = link.latency_us.value;
  options.gb_per_s = link.gb_per_s.value;
  options.seed = cluster_.seed;
  const auto rows = static_cast<double>(cluster_.load.chunk + cluster_.load.users);
  options.most_bytes = static_cast<size_t>(std::ceil(times_.BytesOfRows(rows)));
  LOCKSTEP_ASSIGN_OR_RETURN(sums_, MessageSums::Create(options));
  return OkStatus();
}

const char* StepModel::exchanges() const {
  if (stations_.size() < 2) return "none";
  if (!sums_) return "formula";
  return cluster_.replicas > 1 ? "messages, once for each number of rows" : "messages";
}

std::vector<Parts> StepModel::ComputeParts(const StepRows& rows) const {
  std::vector<Parts> all;
  for (const planner::Station& station : stations_) {
    Parts parts = times_.Mixed(station, rows);
    parts.read *= calibration_.read;
    parts.slow_read *= calibration_.read;
    parts.arithmetic *= calibration_.arithmetic;
    all.push_back(parts);
  }
  return all;
}

double StepModel::FormulaSeconds(double rows) const {
  return times_.ExchangesPerStep() * times_.SumSeconds(times_.BytesOfRows(rows), ranks());
}

// The seconds by which the exchanges make the step longer than its slowest rank's arithmetic.
StatusOr<double> StepModel::ExchangeSeconds(const std::vector<Parts>& compute, double rows) {
  if (stations_.size() < 2) return 0.0;
  if (!sums_) return FormulaSeconds(rows);
  const bool fleet = cluster_.replicas > 1;
  const auto key = static_cast<int64_t>(rows);
  if (const auto found = known_.find(key); fleet && found != known_.end()) return found->second;
  std::vector<double> seconds;
  for (const Parts& parts : compute) seconds.push_back(parts.total());
  const double slowest = *std::max_element(seconds.begin(), seconds.end());
  LOCKSTEP_ASSIGN_OR_RETURN(
      const double total,
      sums_->Seconds(seconds, std::llround(times_.ExchangesPerStep()), times_.BytesOfRows(rows)));
  const double exchange = std::max(total - slowest, 0.0);
  if (fleet) known_[key] = exchange;
  return exchange;
}

StatusOr<StepCost> StepModel::Cost(const StepRows& rows) {
  StepCost cost;
  cost.besides_s = calibration_.step_s;
  const double count = rows.decodes + rows.prompt_rows;
  if (count == 0) return cost;
  const std::vector<Parts> compute = ComputeParts(rows);
  cost.parts = *std::max_element(compute.begin(), compute.end(), Shorter);
  LOCKSTEP_ASSIGN_OR_RETURN(cost.parts.exchange, ExchangeSeconds(compute, count));
  return cost;
}

StatusOr<StepCost> StepModel::Cost(const StepPlan& plan) { return Cost(RowsOf(plan)); }

// As ComputeParts and FormulaSeconds have it, of the slowest rank.
Parts StepModel::Formula(const StepRows& rows) const {
  const std::vector<Parts> compute = ComputeParts(rows);
  Parts parts = *std::max_element(compute.begin(), compute.end(), Shorter);
  parts.exchange = FormulaSeconds(rows.decodes + rows.prompt_rows);
  return parts;
}

void StepModel::Calibrate(const std::vector<MeasuredTest>& tests) {
  std::vector<MeasuredTest> decode, prefill;
  for (const MeasuredTest& test : tests) {
    if (test.ranks == static_cast<int>(stations_.size()))
      (test.decode ? decode : prefill).push_back(test);
  }
  CalibrateDecode(decode);
  CalibratePrefill(prefill);
}

// step = exchange + arithmetic + factor x reading + rest: the factor and the rest that have the
// smallest squares of relative errors; with one batch size, or where it would be negative, no rest.
void StepModel::CalibrateDecode(const std::vector<MeasuredTest>& tests) {
  if (tests.empty()) return;
  double ww = 0, wx = 0, wxx = 0, wy = 0, wxy = 0;
  for (const MeasuredTest& test : tests) {
    const Parts parts = Formula(DecodeRows(test));
    const double step = test.batch / test.tokens_per_s;
    const double weight = 1 / (step * step);
    const double x = parts.read + parts.slow_read;
    const double y = step - parts.exchange - parts.arithmetic;
    ww += weight;
    wx += weight * x;
    wxx += weight * x * x;
    wy += weight * y;
    wxy += weight * x * y;
  }
  const double spread = ww * wxx - wx * wx;
  double factor = wxx > 0 ? wxy / wxx : 1, rest = 0;
  if (spread > 1e-6 * ww * wxx) {
    const double slope = (ww * wxy - wx * wy) / spread;
    const double offset = (wy - slope * wx) / ww;
    if (offset > 0 && slope > kLeastFactor) {
      factor = slope;
      rest = offset;
    } else if (offset > 0) {
      factor = kLeastFactor;
      rest = std::max(0.0, (wy - factor * wx) / ww);
    }
  }
  calibration_.read = std::clamp(factor, kLeastFactor, kMostFactor);
  calibration_.step_s = rest;
  calibration_.decode_tests = static_cast<int>(tests.size());
}

// The factor of arithmetic with which prompts take as long as they did; of several the mean.
void StepModel::CalibratePrefill(const std::vector<MeasuredTest>& tests) {
  double sum = 0;
  for (const MeasuredTest& test : tests) {
    double rest = 0, arithmetic = 0;
    for (double at = 0; at < test.tokens; at += test.chunk) {
      const double end = std::min(test.tokens, at + test.chunk);
      StepRows rows{.prompt_rows = end - at, .cached = end};
      rows.prompt_positions = rows.prompt_rows * (at + end) / 2;
      rows.outputs = end == test.tokens ? 1 : 0;
      const Parts parts = Formula(rows);
      arithmetic += parts.arithmetic;
      rest += parts.total() - parts.arithmetic + calibration_.step_s;
    }
    if (arithmetic <= 0) continue;
    const double seconds = test.tokens / test.tokens_per_s;
    sum += std::clamp((seconds - rest) / arithmetic, kLeastFactor, kMostFactor);
    ++calibration_.prefill_tests;
  }
  if (calibration_.prefill_tests > 0) calibration_.arithmetic = sum / calibration_.prefill_tests;
}

}  // namespace lockstep
