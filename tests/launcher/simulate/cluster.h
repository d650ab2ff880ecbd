// Clusters to simulate.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "launcher/simulate/simulation.h"
#include "runtime/planner/known_models.h"

namespace lockstep::testing {

// GLM-4.7-Flash in Q4_0 on nodes of made-up figures.
inline SimulatedCluster ClusterOf(int ranks, double gb_per_s = 100) {
  SimulatedCluster cluster;
  const auto checkpoint = KnownModel("GLM-4.7-Flash", "q4_0");
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  auto model = planner::CountModel(**checkpoint, std::vector<double>(ranks, 1.0));
  EXPECT_TRUE(model.ok()) << model.status();
  cluster.model = std::move(*model);
  cluster.hardware.nodes = ranks;
  cluster.hardware.node.memory_gib = {64, "test"};
  cluster.hardware.node.gb_per_s = {gb_per_s, "test"};
  cluster.hardware.node.tops = {10, "test"};
  cluster.hardware.link.latency_us = {20, "test"};
  cluster.hardware.link.gb_per_s = {2, "test"};
  cluster.engine.read_share = {0.8, "test"};
  cluster.engine.arithmetic_share = {0.5, "test"};
  cluster.load.users = 16;
  cluster.load.context = 4096;
  cluster.load.prompt = 4096;
  return cluster;
}

inline SimulationOptions OptionsFor(const SimulatedCluster& cluster) {
  SimulationOptions options;
  options.limits.max_sequences = cluster.load.users;
  options.limits.max_rows = cluster.load.chunk + cluster.load.users;
  options.limits.max_outputs = cluster.load.users;
  options.limits.prefill_rows = cluster.load.chunk;
  options.limits.max_model_len = cluster.load.context;
  options.limits.kv_blocks = cluster.load.users * cluster.load.context / 16;
  options.replicas = cluster.replicas;
  options.seed = cluster.seed;
  options.vocab_size = cluster.model.config.vocab_size;
  return options;
}

inline std::unique_ptr<StepModel> StepsOf(const SimulatedCluster& cluster,
                                          const std::vector<MeasuredTest>& tests = {}) {
  auto steps = StepModel::Create(cluster, tests);
  EXPECT_TRUE(steps.ok()) << steps.status();
  return std::move(*steps);
}

inline SimulationResult Simulated(const SimulatedCluster& cluster, const SimulationOptions& options,
                                  const std::vector<TraceRequest>& trace) {
  const std::unique_ptr<StepModel> steps = StepsOf(cluster);
  auto result = Simulate(trace, options, steps.get());
  EXPECT_TRUE(result.ok()) << result.status();
  return std::move(*result);
}

}  // namespace lockstep::testing
