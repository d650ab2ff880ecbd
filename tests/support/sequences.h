// Feeds token lists to a model in steps, as a scheduler would, and collects what comes out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/model/model.h"

namespace lockstep::testing {

// A model with its own threads on one rank of a group.
struct TestModel {
  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<kernels::Backend> backend;
  std::unique_ptr<Model> model;
};

struct TestModelOptions {
  std::string directory;
  std::string kernels = "cpu";
  kernels::Precision precision = kernels::Precision::kExact;
  std::vector<double> shares;
  int threads = 1;
  ModelLimits limits{.max_rows = 640, .max_outputs = 640, .max_model_len = 1024, .kv_blocks = 200};
  bool draft_layer = false;
  StagePlace stage;
  bool share_choices = false;
  // Puts something around the backend; may be empty.
  std::function<std::unique_ptr<kernels::Backend>(std::unique_ptr<kernels::Backend>)> wrap;
};

inline TestModel OpenModel(const TestModelOptions& options, Group& group) {
  TestModel result;
  result.pool = std::make_unique<ThreadPool>(options.threads);
  result.backend = kernels::MakeBackend(options.kernels, options.precision).value();
  if (options.wrap) result.backend = options.wrap(std::move(result.backend));
  LoadOptions load;
  load.directory = options.directory;
  load.shares = ValidateShares(options.shares, group.size()).value();
  load.limits = options.limits;
  load.draft_layer = options.draft_layer;
  load.stage = options.stage;
  load.share_choices = options.share_choices;
  StatusOr<std::unique_ptr<Model>> model = LoadModel(load, group, *result.backend, *result.pool);
  EXPECT_TRUE(model.ok()) << model.status();
  if (model.ok()) result.model = std::move(*model);
  return result;
}

// One sequence with its cache blocks [first_block, first_block + blocks).
struct Sequence {
  std::vector<int32_t> tokens;
  int32_t first_block = 0;
  int32_t done = 0;
};

struct Collected {
  std::vector<std::vector<float>> logits;  // per sequence [n, vocab slice]
  std::vector<std::vector<float>> hidden;  // per sequence [n, hidden]
  std::vector<uint64_t> digests;           // per step
  int64_t hidden_size = 0;
};

// Runs all tokens, `step` per sequence and step (0: all), all sequences in the same steps, all rows
// as outputs.
inline Collected RunTogether(Model& model, std::vector<Sequence> sequences, int step) {
  Collected result;
  result.logits.resize(sequences.size());
  result.hidden.resize(sequences.size());
  result.hidden_size = model.config().hidden_size;
  while (true) {
    Batch batch;
    for (size_t s = 0; s < sequences.size(); ++s) {
      Sequence& sequence = sequences[s];
      const int left = static_cast<int>(sequence.tokens.size()) - sequence.done;
      const int take = step == 0 ? left : std::min(step, left);
      std::vector<int32_t> table;
      for (size_t b = 0; b * kBlockTokens < sequence.tokens.size(); ++b) {
        table.push_back(sequence.first_block + static_cast<int32_t>(b));
      }
      batch.block_tables.push_back(table);
      for (int i = 0; i < take; ++i) {
        batch.tokens.push_back(sequence.tokens[sequence.done]);
        batch.positions.push_back(sequence.done++);
        batch.sequences.push_back(static_cast<int32_t>(s));
        batch.output_rows.push_back(static_cast<int32_t>(batch.output_rows.size()));
      }
    }
    if (batch.tokens.empty()) return result;
    const StatusOr<StepOutput> output = model.Step(batch);
    EXPECT_TRUE(output.ok()) << output.status();
    if (!output.ok()) return result;
    const int64_t vocab = output->vocab.size();
    const int64_t hidden = model.config().hidden_size;
    for (int64_t row = 0; row < output->outputs; ++row) {
      const int32_t s = batch.sequences[row];
      result.logits[s].insert(result.logits[s].end(), output->logits.begin() + row * vocab,
                              output->logits.begin() + (row + 1) * vocab);
      result.hidden[s].insert(result.hidden[s].end(), output->hidden.begin() + row * hidden,
                              output->hidden.begin() + (row + 1) * hidden);
    }
    result.digests.push_back(output->digest);
  }
}

}  // namespace lockstep::testing
