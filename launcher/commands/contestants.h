// What `lockstep bench collectives` compares: ways to move and add values between ranks.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "collectives/choose.h"
#include "launcher/session.h"

namespace lockstep {

// What all ranks contribute to a sum: values of very different sizes, so that another order of
// additions or a rank's older contribution shows in the bits. Repetitions differ by powers of two,
// which scale every sum exactly.
class Values {
 public:
  Values(int rank, int ranks, size_t count, WireFormat wire)
      : ranks_(ranks), mine_(count), sum_(count), exact_sum_(count) {
    for (size_t i = 0; i < count; ++i) mine_[i] = Of(rank, i);
    std::vector<float> values(count), rounded(count);
    for (int from = 0; from < ranks; ++from) {
      for (size_t i = 0; i < count; ++i) values[i] = Of(from, i);
      for (size_t i = 0; i < count; ++i) exact_sum_[i] += values[i];
      const auto bytes = std::as_writable_bytes(std::span(values));
      Pack(wire, bytes);
      Unpack(wire, bytes.first(WireBytes(wire, count)), rounded);
      for (size_t i = 0; i < count; ++i) sum_[i] = from == 0 ? rounded[i] : sum_[i] + rounded[i];
    }
  }

  void Fill(size_t repetition, std::span<float> data) const {
    const float scale = Scale(repetition);
    for (size_t i = 0; i < data.size(); ++i) data[i] = mine_[i] * scale;
  }
  // The sum in rank order of what travels, to the bit.
  Status Check(size_t repetition, std::span<const float> data) const {
    return Near(sum_, repetition, data, 0);
  }
  // A sum of the float32 values in any order; `slack` is how far it may be, per rank.
  Status CheckInAnyOrder(size_t repetition, std::span<const float> data, float slack) const {
    return Near(exact_sum_, repetition, data, slack);
  }

 private:
  Status Near(std::span<const float> sum, size_t repetition, std::span<const float> data,
              float slack) const {
    const float scale = Scale(repetition);
    bool right = true;
    for (size_t i = 0; i < data.size(); ++i) {
      right &= std::abs(data[i] - sum[i] * scale) <= slack * static_cast<float>(ranks_) * scale;
    }
    return right ? OkStatus()
                 : InternalError("repetition %d: an all-reduce of %d bytes has a wrong sum",
                                 repetition, data.size_bytes());
  }

  static float Of(int rank, size_t i) {
    const uint32_t mixed =
        (static_cast<uint32_t>(i) + 1) * 2'654'435'761u ^ (static_cast<uint32_t>(rank) + 1) * 97u;
    const auto fraction = static_cast<float>(mixed >> 8) * 0x1p-23f - 1.0f;
    return std::ldexp(fraction, static_cast<int>(mixed % 16) - 8);
  }
  static float Scale(size_t repetition) { return static_cast<float>(1 << repetition % 3); }

  int ranks_;
  std::vector<float> mine_;
  std::vector<float> sum_;  // the left fold in rank order of what travels
  std::vector<float> exact_sum_;
};

// One way to move or add, and what it took.
struct Contestant {
  std::string transport;
  std::string algorithm;
  // One checked repetition over values of a size; returns its nanoseconds on this rank.
  std::function<StatusOr<int64_t>(size_t repetition, const Values&, std::span<float>)> run;
  std::string dtype = "float32";  // of what travels
  // For float32 values of a size, whether there is this way, and whether it is the one taken.
  std::function<bool(size_t bytes)> possible = [](size_t) { return true; };
  std::function<bool(size_t bytes)> chosen = [](size_t) { return true; };
  std::vector<std::vector<float>> samples_us = {};  // per size, of all rounds
};

// The name of the way in which layers make sums: of what stands in the group's slots.
std::string InSlot(SumAlgorithm algorithm);

// Over each transport, with `longest_bytes` of float32 values at most. Slots are as long as the
// longest message, as those of a step are. Collective.
StatusOr<std::vector<Contestant>> MakeContestants(Session& session,
                                                  const std::vector<std::string>& transports,
                                                  size_t longest_bytes, WireFormat wire);

}  // namespace lockstep
