// The control channel, apart from the data path: a star of connections around rank 0 and one small
// thread per process. It carries heartbeats, notices the dead and the silent, spreads the reason of
// an abort, and shares the addresses from which data connections are made. It sets the lifeline; it
// never touches a group.
#pragma once

#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "collectives/lifeline.h"
#include "collectives/rank_meter.h"
#include "runtime/base/bytes.h"
#include "runtime/base/clock.h"
#include "runtime/base/status.h"
#include "transport/socket.h"

namespace lockstep {

struct ControlOptions {
  int rank = 0;
  int size = 1;
  int64_t peer_timeout_ms = 10'000;
  int64_t heartbeat_ms = 200;
  std::vector<std::string> names;  // by rank
  std::shared_ptr<Lifeline> lifeline;
  const RankMeter* meter = nullptr;  // of this rank; outlives the channel
};

// One message: type, body. Its bounds are checked before anything is allocated.
enum class ControlType : uint8_t { kHeartbeat = 1, kStop = 2, kLeave = 3, kShare = 4, kShared = 5 };
struct ControlFrame {
  ControlType type = ControlType::kHeartbeat;
  std::vector<std::byte> body;
};
inline constexpr size_t kLargestControlBody = size_t{256} << 10;
std::vector<std::byte> EncodeFrame(const ControlFrame& frame);
// Takes one frame off the front of `bytes`: 1 when there was one, 0 when more bytes are needed.
StatusOr<int> TakeFrame(std::vector<std::byte>* bytes, ControlFrame* frame);

class ControlChannel {
 public:
  // `connections`: rank 0: to rank r at [r]; the others: to rank 0 at [0].
  ControlChannel(ControlOptions options, std::vector<UniqueFd> connections);
  // Ends the thread and closes. Without Leave() before, the others take it for a crash.
  ~ControlChannel();

  // Tells every rank why this one stops. Returns when it is sent or after 200 ms.
  void Announce(const Status& reason);
  // Says that this rank ends in order; from then on nobody's end is news. Returns when it is sent
  // or after 200 ms.
  void Leave();
  // Collective: every rank's text, by rank. Calls with the same topic belong together.
  StatusOr<std::vector<std::string>> Share(uint32_t topic, const std::string& text,
                                           Deadline deadline);
  // Rank 0: what is known of every rank, by rank.
  std::vector<RankNews> News();

 private:
  // Five seconds of heartbeats: the least of their round trips is that of the network, the others
  // waited for a busy core.
  static constexpr size_t kRoundTrips = 25;
  struct Connection {
    int rank = 0;
    UniqueFd socket;
    std::vector<std::byte> incoming;  // of the thread only
    std::vector<std::byte> outgoing;  // under mutex_
    int64_t heard_ns = 0;
    bool left = false;
    // Of its heartbeats; under mutex_.
    RankReport report;
    int64_t beat_ns = 0;                                // when the last one came; 0: none has
    std::array<int64_t, kRoundTrips> round_trips_ns{};  // the last ones, 0: none yet
    size_t next_round_trip = 0;
  };
  struct Topic {
    std::vector<std::string> texts;
    std::vector<bool> present;
    bool complete = false;
  };

  void Run();
  void WaitForNews();
  void Read(Connection* connection);
  // False: it is malformed.
  bool Handle(Connection* connection, const ControlFrame& frame);
  void HandleHeartbeat(Connection* from, const Heartbeat& heartbeat);
  void HandleStop(const Connection& from, ByteReader* reader);
  void HandleShare(int rank, ByteReader* reader);
  void HandleShared(ByteReader* reader);
  void Lost(Connection* connection, const std::string& what);
  void CheckSilence();
  void Beat();
  void WriteLocked();
  // Queues for every connection but `except`'s. mutex_ is held.
  void QueueLocked(const ControlFrame& frame, int except_rank);
  void CompleteTopicLocked(uint32_t number, Topic* topic);
  void Wake();
  void FlushLocked(std::unique_lock<std::mutex>* lock);

  ControlOptions options_;
  UniqueFd wake_read_, wake_write_;
  std::vector<Connection> connections_;
  std::mutex mutex_;
  std::condition_variable changed_;  // something was sent, a topic is complete
  std::map<uint32_t, Topic> topics_;
  bool leaving_ = false;
  bool stopping_ = false;
  int64_t next_beat_ns_ = 0;
  int64_t last_loop_ns_ = 0;
  uint64_t stamp_ = 0;  // of rank 0's last heartbeat, and when it came; under mutex_
  int64_t stamp_came_ns_ = 0;
  int64_t away_ms_ = 0;  // how long this process did not run before its last look around
  std::thread thread_;
};

}  // namespace lockstep
