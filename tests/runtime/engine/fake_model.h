// A model without weights: its logits are a pure function of the whole token history, which it
// reads back through the KV blocks of the batch. A wrong block table, position or order changes
// every token that follows.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "runtime/base/digest.h"
#include "runtime/decode/random.h"
#include "runtime/decode/sampler.h"
#include "runtime/model/model.h"

namespace lockstep::testing {

inline constexpr int64_t kFakeVocab = 97;
inline constexpr int64_t kFakeHidden = 4;

inline uint64_t HistoryHash(const std::vector<int32_t>& tokens) {
  uint64_t hash = 1;
  for (const int32_t token : tokens) hash = MixBits(hash * 31 + static_cast<uint64_t>(token) + 7);
  return hash;
}

inline float FakeLogit(uint64_t hash, int64_t id) {
  return static_cast<float>(MixBits(hash + static_cast<uint64_t>(id) * kGoldenGamma) >> 40) *
         0x1p-21f;  // [0, 8)
}

// The greedy continuation, computed by the book.
inline std::vector<int32_t> GreedyReference(std::vector<int32_t> tokens, int64_t count) {
  std::vector<int32_t> output;
  while (static_cast<int64_t>(output.size()) < count) {
    const uint64_t hash = HistoryHash(tokens);
    int32_t best = 0;
    for (int32_t id = 1; id < kFakeVocab; ++id) {
      if (FakeLogit(hash, id) > FakeLogit(hash, best)) best = id;
    }
    output.push_back(best);
    tokens.push_back(best);
  }
  return output;
}

class FakeModel final : public Model {
 public:
  FakeModel(const ModelLimits& limits, VocabSlice slice, int64_t vocab = kFakeVocab)
      : limits_(limits), slice_(slice), pages_(limits.kv_blocks * kBlockTokens, -1) {
    config_.vocab_size = vocab;
    config_.hidden_size = kFakeHidden;
  }

  const ModelConfig& config() const override { return config_; }
  const ModelLimits& limits() const override { return limits_; }
  void SetWire(WireFormat) override {}
  void SetOverlap(int64_t) override {}
  const MemoryPlan& memory() const override { return memory_; }
  uint64_t bytes_read() const override { return 0; }
  uint64_t bytes_per_token() const override { return 0; }

  StatusOr<StepOutput> Step(const Batch& batch) override {
    ++steps;
    if (step_ms > 0) std::this_thread::sleep_for(std::chrono::milliseconds(step_ms));
    if (steps == fail_at) return InternalError("the fake model was told to fail");
    rows_seen += batch.rows();
    for (int64_t row = 0; row < batch.rows(); ++row)
      *Cell(batch, row, batch.positions[row]) = batch.tokens[row];
    const int64_t outputs = static_cast<int64_t>(batch.output_rows.size());
    logits_.resize(outputs * slice_.size());
    hidden_.resize(outputs * kFakeHidden);
    uint64_t digest = 0;
    for (int64_t i = 0; i < outputs; ++i) {
      const int64_t row = batch.output_rows[i];
      std::vector<int32_t> history;
      for (int32_t position = 0; position <= batch.positions[row]; ++position) {
        history.push_back(*Cell(batch, row, position));
      }
      const uint64_t hash = HistoryHash(history);
      digest = MixBits(digest + hash);
      for (int64_t id = slice_.begin; id < slice_.end; ++id) {
        logits_[i * slice_.size() + id - slice_.begin] = FakeLogit(hash, id);
      }
      for (int64_t k = 0; k < kFakeHidden; ++k)
        hidden_[i * kFakeHidden + k] = FakeLogit(hash, 1'000 + k);
    }
    StepOutput output;
    output.outputs = outputs;
    output.vocab = {slice_.begin, slice_.end};
    output.logits = logits_;
    output.hidden = hidden_;
    output.digest = steps == corrupt_at ? digest + 1 : digest;
    return output;
  }

  // Logits that say what came in: of token, position and first hidden value.
  StatusOr<StepOutput> Draft(const Batch& batch, std::span<const float> hidden) override {
    const int64_t rows = batch.rows();
    logits_.resize(rows * slice_.size());
    const std::vector<float> states(hidden.begin(), hidden.end());
    for (int64_t row = 0; row < rows; ++row) {
      const uint64_t hash =
          MixBits(static_cast<uint64_t>(batch.tokens[row]) * 1'000 + batch.positions[row] +
                  static_cast<uint64_t>(states[row * kFakeHidden] * 0x1p20f));
      for (int64_t id = slice_.begin; id < slice_.end; ++id)
        logits_[row * slice_.size() + id - slice_.begin] = FakeLogit(hash, id);
    }
    StepOutput output;
    output.outputs = rows;
    output.vocab = {slice_.begin, slice_.end};
    output.logits = logits_;
    return output;
  }

  int64_t block_bytes() const override { return kBlockTokens * int64_t{sizeof(int32_t)}; }
  void ReadBlock(int32_t block, int32_t, std::span<std::byte> to) const override {
    std::memcpy(to.data(), &pages_[block * kBlockTokens], to.size());
  }
  void WriteBlock(int32_t block, int32_t, std::span<const std::byte> from) override {
    std::memcpy(&pages_[block * kBlockTokens], from.data(), from.size());
  }

  int64_t steps = 0;
  int64_t rows_seen = 0;
  int64_t step_ms = 0;
  int64_t fail_at = -1;
  int64_t corrupt_at = -1;

 private:
  int32_t* Cell(const Batch& batch, int64_t row, int32_t position) {
    const std::vector<int32_t>& table = batch.block_tables[batch.sequences[row]];
    return &pages_[int64_t{table[position / kBlockTokens]} * kBlockTokens +
                   position % kBlockTokens];
  }

  ModelConfig config_;
  ModelLimits limits_;
  MemoryPlan memory_;
  VocabSlice slice_;
  std::vector<int32_t> pages_;
  std::vector<float> logits_;
  std::vector<float> hidden_;
};

inline VocabSlice FakeSlice(int rank, int ranks) {
  return {kFakeVocab * rank / ranks, kFakeVocab * (rank + 1) / ranks};
}

inline std::vector<std::string> FakeNames(int ranks) {
  std::vector<std::string> names;
  for (int r = 0; r < ranks; ++r)
    names.push_back("rank " + std::to_string(r) + " (node, pid " + std::to_string(r) + ")");
  return names;
}

}  // namespace lockstep::testing
