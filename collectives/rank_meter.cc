#include "collectives/rank_meter.h"

#include <algorithm>

#include "runtime/base/bytes.h"
#include "runtime/base/os.h"

namespace lockstep {
namespace {

// In the order of the wire.
constexpr uint64_t RankReport::*kFields[] = {
    &RankReport::steps,         &RankReport::compute_ns,     &RankReport::exchange_ns,
    &RankReport::exchanges,     &RankReport::read_bytes,     &RankReport::memory_rate,
    &RankReport::weight_bytes,  &RankReport::token_bytes,    &RankReport::kv_bytes,
    &RankReport::planned_bytes, &RankReport::resident_bytes,
};

}  // namespace

void RankMeter::SetLoaded(const RankReport& loaded) {
  const std::lock_guard lock(mutex_);
  report_.memory_rate = loaded.memory_rate;
  report_.weight_bytes = loaded.weight_bytes;
  report_.token_bytes = loaded.token_bytes;
  report_.kv_bytes = loaded.kv_bytes;
  report_.planned_bytes = loaded.planned_bytes;
  report_.threads = loaded.threads;
}

void RankMeter::AddDecodeStep(int64_t compute_ns, const Exchanges& during, uint64_t read_bytes) {
  const std::lock_guard lock(mutex_);
  ++report_.steps;
  report_.compute_ns += static_cast<uint64_t>(std::max<int64_t>(compute_ns, 0));
  report_.exchange_ns += static_cast<uint64_t>(std::max<int64_t>(during.ns, 0));
  report_.exchanges += static_cast<uint64_t>(std::max<int64_t>(during.calls, 0));
  report_.read_bytes += read_bytes;
}

RankReport RankMeter::Report() const {
  const uint64_t resident_bytes = os::ResidentBytes();
  const std::lock_guard lock(mutex_);
  RankReport report = report_;
  report.resident_bytes = resident_bytes;
  return report;
}

std::vector<std::byte> EncodeHeartbeat(const Heartbeat& heartbeat) {
  ByteWriter writer;
  writer.Put(heartbeat.stamp);
  writer.Put(heartbeat.held_ns);
  for (uint64_t RankReport::*const field : kFields) writer.Put(heartbeat.report.*field);
  writer.Put(heartbeat.report.threads);
  return writer.bytes();
}

StatusOr<Heartbeat> ParseHeartbeat(std::span<const std::byte> body) {
  ByteReader reader(body);
  Heartbeat heartbeat;
  heartbeat.stamp = reader.Get<uint64_t>();
  heartbeat.held_ns = reader.Get<uint64_t>();
  for (uint64_t RankReport::*const field : kFields)
    heartbeat.report.*field = reader.Get<uint64_t>();
  heartbeat.report.threads = reader.Get<uint32_t>();
  LOCKSTEP_RETURN_IF_ERROR(reader.Finish("heartbeat"));
  return heartbeat;
}

}  // namespace lockstep
