// How long a step of one replica takes: the planner's formulas, what was measured of this cluster
// over them, and the exchanges by messages or by a formula.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "launcher/measured.h"
#include "launcher/simulate/message_sums.h"
#include "runtime/base/status.h"
#include "runtime/engine/plan.h"
#include "runtime/planner/step_time.h"

namespace lockstep {

// What is simulated. Slices of every layer on as many nodes as the model was counted for.
struct SimulatedCluster {
  planner::CountedModel model;
  planner::Hardware hardware;
  planner::Engine engine;
  planner::Load load;
  int replicas = 1;
  uint64_t seed = 1;
};

// Factors over the formulas, so that they meet what was measured.
struct Calibration {
  double read = 1;                          // of reading
  double arithmetic = 1;                    // of prompts' arithmetic
  double step_s = 0;                        // that every step takes besides
  int decode_tests = 0, prefill_tests = 0;  // that they are from
};

struct StepCost {
  planner::Parts parts;
  double besides_s = 0;
  double total() const { return parts.total() + besides_s; }
};

class StepModel {
 public:
  // Where messages are simulated one by one.
  static constexpr int kMostRanks = 8;

  // `tests`: of `lockstep bench decode` and `bench prefill`, those of other numbers of ranks are
  // passed over.
  static StatusOr<std::unique_ptr<StepModel>> Create(SimulatedCluster cluster,
                                                     const std::vector<MeasuredTest>& tests);
  StepModel(const StepModel&) = delete;

  StatusOr<StepCost> Cost(const StepPlan& plan);
  StatusOr<StepCost> Cost(const planner::StepRows& rows);

  // "none", "messages", "messages, once for each number of rows", "formula".
  const char* exchanges() const;
  const Calibration& calibration() const { return calibration_; }
  uint64_t messages() const { return sums_ ? sums_->messages() : 0; }
  const SimulatedCluster& cluster() const { return cluster_; }

 private:
  explicit StepModel(SimulatedCluster cluster);
  Status OpenMessages();
  // Of every rank, calibrated, without exchanges.
  std::vector<planner::Parts> ComputeParts(const planner::StepRows& rows) const;
  StatusOr<double> ExchangeSeconds(const std::vector<planner::Parts>& compute, double rows);
  double FormulaSeconds(double rows) const;
  planner::Parts Formula(const planner::StepRows& rows) const;
  void Calibrate(const std::vector<MeasuredTest>& tests);
  void CalibrateDecode(const std::vector<MeasuredTest>& tests);
  void CalibratePrefill(const std::vector<MeasuredTest>& tests);
  double ranks() const { return static_cast<double>(stations_.size()); }

  const SimulatedCluster cluster_;
  const planner::StepTimes times_;
  const std::vector<planner::Station> stations_;
  Calibration calibration_;
  std::optional<MessageSums> sums_;
  std::map<int64_t, double> known_;  // of a fleet: seconds of the exchanges, by rows
};

// What a plan computes.
planner::StepRows RowsOf(const StepPlan& plan);

}  // namespace lockstep
