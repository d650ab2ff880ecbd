#include "runtime/planner/step_time.h"

#include <algorithm>

namespace lockstep::planner {
namespace {

constexpr double kGib = 1024.0 * 1024 * 1024;

}  // namespace

Parts operator+(const Parts& a, const Parts& b) {
  return {a.read + b.read, a.slow_read + b.slow_read, a.arithmetic + b.arithmetic,
          a.exchange + b.exchange};
}

Parts operator*(double factor, const Parts& parts) {
  return {factor * parts.read, factor * parts.slow_read, factor * parts.arithmetic,
          factor * parts.exchange};
}

bool Shorter(const Parts& a, const Parts& b) { return a.total() < b.total(); }

std::vector<Station> StepTimes::StationsOf(const std::vector<Seat>& seats) const {
  std::vector<Station> stations;
  for (const Seat& seat : seats) {
    Seat one = seat;
    one.config.num_hidden_layers = 1;
    stations.push_back({seat, LayersOf(seat), CacheBytesOf(seat, load_.cache),
                        CacheBytesOf(one, load_.cache), SlowOf(seat)});
  }
  return stations;
}

SlowParts StepTimes::SlowOf(const Seat& seat) const {
  if (!hardware_.node.slow_gib.known()) return {};
  const MemoryPlan plan = MemoryOf(seat, load_, load_.users, load_.context);
  double over = static_cast<double>(plan.total()) - hardware_.node.memory_gib.value * kGib;
  if (over <= 0) return {};
  double experts = 0, always = static_cast<double>(seat.bytes.head);
  for (const LayerBytes& layer : seat.bytes.layers) {
    experts += static_cast<double>(layer.experts);
    always += static_cast<double>(layer.always);
  }
  SlowParts slow;
  if (experts > 0) slow.experts = std::min(1.0, over / experts);
  over -= slow.experts * experts;
  if (always > 0) slow.always = std::clamp(over / always, 0.0, 1.0);
  return slow;
}

double StepTimes::ArithmeticSeconds(double operations) const {
  return operations / (hardware_.node.tops.value * 1e12 * engine_.arithmetic_share.value);
}

Parts StepTimes::ReadParts(const SlowParts& slow, const LayerBytes& reads, double head,
                           double cache) const {
  const double always = static_cast<double>(reads.always) + head;
  const auto experts = static_cast<double>(reads.experts);
  Parts parts;
  parts.read = ReadSeconds((1 - slow.always) * always + (1 - slow.experts) * experts + cache);
  const double behind = slow.always * always + slow.experts * experts;
  if (behind > 0) {
    parts.slow_read =
        behind / (hardware_.node.slow_gb_per_s.value * 1e9 * engine_.read_share.value);
  }
  return parts;
}

Parts StepTimes::Decode(const Station& station, double users) const {
  const Seat& seat = station.seat;
  const double depth = seat.drafts ? static_cast<double>(load_.draft_acceptance.size()) : 0;
  const double rows = users * static_cast<double>(1 + load_.draft_acceptance.size());
  const auto context = static_cast<double>(load_.context);
  LayerBytes reads = ReadsOf(seat.config, station.layers, rows);
  const LayerBytes once = ReadsOf(seat.config, seat.bytes.draft, users);
  reads.always += static_cast<uint64_t>(depth * static_cast<double>(once.always));
  reads.experts += static_cast<uint64_t>(depth * static_cast<double>(once.experts));
  // Each draft reads the head again.
  const double head = (1 + depth) * static_cast<double>(seat.bytes.head);
  const double cache =
      users * context * (station.position_bytes + depth * station.draft_position_bytes);
  Parts parts = ReadParts(station.slow, reads, head, cache);
  if (!KnowsArithmetic()) return parts;
  const double draft_parameters =
      work_.layer_parameters / layers_ + 2 * hidden_ * hidden_ + work_.head_parameters;
  parts.arithmetic = ArithmeticSeconds(
      rows *
          (2 * (seat.layer_work * work_.layer_parameters + seat.head_work * work_.head_parameters) +
           seat.layer_work * work_.attention_per_position * context) +
      depth * users * seat.head_work *
          (2 * draft_parameters + work_.attention_per_position / layers_ * context));
  // With few rows products wait for memory all the time; what takes longer hides the other.
  if (parts.arithmetic < parts.read + parts.slow_read) {
    parts.arithmetic = 0;
  } else {
    parts.read = parts.slow_read = 0;
  }
  return parts;
}

Parts StepTimes::Chunk(const Station& station, double begin, double end) const {
  const double rows = end - begin;
  const double cache = end * station.position_bytes;
  Parts parts =
      ReadParts(station.slow, ReadsOf(station.seat.config, station.layers, rows), 0, cache);
  const double positions = rows * (begin + end) / 2;
  parts.arithmetic =
      ArithmeticSeconds(station.seat.layer_work * (2 * rows * work_.layer_parameters +
                                                   positions * work_.attention_per_position));
  return parts;
}

Parts StepTimes::Mixed(const Station& station, const StepRows& rows) const {
  const Seat& seat = station.seat;
  const double head = rows.outputs > 0 ? static_cast<double>(seat.bytes.head) : 0;
  Parts parts =
      ReadParts(station.slow, ReadsOf(seat.config, station.layers, rows.decodes + rows.prompt_rows),
                head, rows.cached * station.position_bytes);
  if (!KnowsArithmetic()) return parts;
  const auto seconds = [&](double count, double outputs, double positions) {
    return ArithmeticSeconds(2 * (count * seat.layer_work * work_.layer_parameters +
                                  outputs * seat.head_work * work_.head_parameters) +
                             positions * seat.layer_work * work_.attention_per_position);
  };
  const double decoding = seconds(rows.decodes, rows.decodes, rows.decode_positions);
  // As of few rows alone: what takes longer hides the other.
  if (decoding >= parts.read + parts.slow_read) parts = {.arithmetic = decoding};
  parts.arithmetic += seconds(rows.prompt_rows, 0, rows.prompt_positions);
  return parts;
}

double StepTimes::SumSeconds(double bytes, double ranks) const {
  if (ranks < 2) return 0;
  const double latency = hardware_.link.latency_us.value * 1e-6;
  const double byte = 1 / (hardware_.link.gb_per_s.value * 1e9);
  const double scattered = 2 * (ranks - 1) / ranks * bytes * byte;
  if (engine_.ring) return 2 * (ranks - 1) * latency + scattered;
  return std::min(latency + (ranks - 1) * bytes * byte, 2 * latency + scattered);
}

double StepTimes::HopSeconds(double bytes) const {
  return 1e-6 * hardware_.link.latency_us.value + bytes / (hardware_.link.gb_per_s.value * 1e9);
}

}  // namespace lockstep::planner
