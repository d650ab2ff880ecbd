// What a rank says about itself: how its decode steps spend their time, and its memory. Whoever
// does the work counts; the control channel (control.h) carries the figures to rank 0 with its
// heartbeats, so that no step sends a byte for them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "runtime/base/status.h"

namespace lockstep {

struct RankReport {
  // Decode steps: every row gives a token. Since the rank joined.
  uint64_t steps = 0;
  uint64_t compute_ns = 0;   // in the model, but for its exchanges
  uint64_t exchange_ns = 0;  // from a filled slot until all ranks' values are added: waits included
  uint64_t exchanges = 0;
  uint64_t read_bytes = 0;  // of weights, in the model
  // Bytes a second that its threads read from memory when the model was loaded, beside the other
  // ranks of its machine. 0: nobody looked.
  uint64_t memory_rate = 0;
  // Memory: of this rank's weights, what one token reads of them, its KV cache, all that was
  // planned, and what the process holds now.
  uint64_t weight_bytes = 0;
  uint64_t token_bytes = 0;
  uint64_t kv_bytes = 0;
  uint64_t planned_bytes = 0;
  uint64_t resident_bytes = 0;
  uint32_t threads = 0;

  bool operator==(const RankReport&) const = default;
};

class RankMeter {
 public:
  // All exchanges so far, in decode steps or not. Belongs to whoever uses the group.
  struct Exchanges {
    int64_t ns = 0;
    int64_t calls = 0;
    // Of that time: until the others' parts were there and the own ones had left.
    int64_t wait_ns = 0;
    // What this rank sent to others, without headers. What SumInAnyOrder sends does not count.
    uint64_t bytes = 0;
  };
  Exchanges exchanges;

  // A model is there; only what does not count decode steps is looked at. Any thread.
  void SetLoaded(const RankReport& loaded);
  // One decode step. Any thread.
  void AddDecodeStep(int64_t compute_ns, const Exchanges& during, uint64_t read_bytes);
  // With the memory that the process holds now. Any thread.
  RankReport Report() const;

 private:
  mutable std::mutex mutex_;
  RankReport report_;
};

// The body of a heartbeat (docs/wire.md).
struct Heartbeat {
  // Of rank 0: its clock. Of the others: the last stamp that came from rank 0 (0: none has), and
  // how long ago. So rank 0 knows the round trip without a message of its own for it.
  uint64_t stamp = 0;
  uint64_t held_ns = 0;
  RankReport report;
};
std::vector<std::byte> EncodeHeartbeat(const Heartbeat& heartbeat);
StatusOr<Heartbeat> ParseHeartbeat(std::span<const std::byte> body);

// What rank 0 knows of a rank.
struct RankNews {
  RankReport report;
  int64_t round_trip_ns = -1;  // over the control channel, the least of some seconds; -1: not known
  int64_t silent_ns = 0;       // since its last heartbeat
};

}  // namespace lockstep
