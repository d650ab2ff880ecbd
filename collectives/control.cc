#include "collectives/control.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_join.h"
#include "runtime/base/check.h"

namespace lockstep {
namespace {

constexpr size_t kFrameHeaderBytes = 5;  // body length, type
constexpr int64_t kFlushMs = 200;
constexpr size_t kLongestReason = 16'384;
// A peer that reads nothing gets no more heartbeats than this.
constexpr size_t kMostUnsentHeartbeats = 4'096;

ControlFrame MakeStop(const Status& reason, const std::string& message) {
  ByteWriter writer;
  writer.Put(static_cast<uint8_t>(KindOf(reason)));
  writer.Put(static_cast<int32_t>(LostRank(reason)));
  writer.PutString(std::string_view(message).substr(0, kLongestReason));
  return {ControlType::kStop, writer.bytes()};
}

}  // namespace

std::vector<std::byte> EncodeFrame(const ControlFrame& frame) {
  ByteWriter writer;
  writer.Put(static_cast<uint32_t>(frame.body.size()));
  writer.Put(static_cast<uint8_t>(frame.type));
  std::vector<std::byte> bytes = writer.bytes();
  bytes.insert(bytes.end(), frame.body.begin(), frame.body.end());
  return bytes;
}

StatusOr<int> TakeFrame(std::vector<std::byte>* bytes, ControlFrame* frame) {
  if (bytes->size() < kFrameHeaderBytes) return 0;
  ByteReader reader(*bytes);
  const size_t size = reader.Get<uint32_t>();
  const uint8_t type = reader.Get<uint8_t>();
  if (size > kLargestControlBody || type < 1 || type > 5)
    return InternalError("malformed control message");
  if (bytes->size() < kFrameHeaderBytes + size) return 0;
  frame->type = static_cast<ControlType>(type);
  const auto body = bytes->begin() + kFrameHeaderBytes;
  frame->body.assign(body, body + static_cast<ptrdiff_t>(size));
  bytes->erase(bytes->begin(), body + static_cast<ptrdiff_t>(size));
  return 1;
}

ControlChannel::ControlChannel(ControlOptions options, std::vector<UniqueFd> connections)
    : options_(std::move(options)) {
  int ends[2];
  LOCKSTEP_CHECK(pipe(ends) == 0);
  for (const int end : ends) {
    (void)fcntl(end, F_SETFL, O_NONBLOCK);
    (void)fcntl(end, F_SETFD, FD_CLOEXEC);
  }
  wake_read_ = UniqueFd(ends[0]);
  wake_write_ = UniqueFd(ends[1]);
  last_loop_ns_ = NowNs();
  for (size_t rank = 0; rank < connections.size(); ++rank) {
    if (!connections[rank].valid()) continue;
    Connection connection;
    connection.rank = static_cast<int>(rank);
    connection.socket = std::move(connections[rank]);
    connection.heard_ns = last_loop_ns_;
    connections_.push_back(std::move(connection));
  }
  thread_ = std::thread([this] { Run(); });
}

ControlChannel::~ControlChannel() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  Wake();
  thread_.join();
}

void ControlChannel::Wake() {
  const char byte = 'w';
  (void)!write(wake_write_.get(), &byte, 1);  // a full pipe wakes as well
}

void ControlChannel::Announce(const Status& reason) {
  // A reason that all ranks agreed on names this one already.
  const std::string& name = options_.names[options_.rank];
  std::string message = MessageOf(reason);
  if (message.compare(0, name.size(), name) != 0) message = name + ": " + message;
  std::unique_lock lock(mutex_);
  QueueLocked(MakeStop(reason, message), -1);
  FlushLocked(&lock);
}

void ControlChannel::Leave() {
  std::unique_lock lock(mutex_);
  if (leaving_) return;
  leaving_ = true;
  QueueLocked({ControlType::kLeave, {}}, -1);
  FlushLocked(&lock);
}

void ControlChannel::FlushLocked(std::unique_lock<std::mutex>* lock) {
  Wake();
  changed_.wait_for(*lock, std::chrono::milliseconds(kFlushMs), [this] {
    return std::all_of(connections_.begin(), connections_.end(), [](const Connection& item) {
      return item.outgoing.empty() || !item.socket.valid();
    });
  });
}

void ControlChannel::QueueLocked(const ControlFrame& frame, int except_rank) {
  const std::vector<std::byte> bytes = EncodeFrame(frame);
  for (Connection& connection : connections_) {
    if (connection.rank == except_rank || !connection.socket.valid()) continue;
    connection.outgoing.insert(connection.outgoing.end(), bytes.begin(), bytes.end());
  }
}

StatusOr<std::vector<std::string>> ControlChannel::Share(uint32_t number, const std::string& text,
                                                         Deadline deadline) {
  std::unique_lock lock(mutex_);
  if (options_.rank == 0) {
    Topic& topic = topics_[number];
    topic.texts.resize(options_.size);
    topic.present.resize(options_.size);
    topic.texts[0] = text;
    topic.present[0] = true;
    CompleteTopicLocked(number, &topic);
  } else {
    ByteWriter writer;
    writer.Put(number);
    writer.PutString(text);
    QueueLocked({ControlType::kShare, writer.bytes()}, -1);
  }
  Wake();
  while (!topics_[number].complete) {
    if (options_.lifeline->broken()) return options_.lifeline->reason();
    if (deadline.Passed()) {
      std::vector<std::string> missing;
      const std::vector<bool>& present = topics_[number].present;
      for (size_t rank = 0; rank < present.size(); ++rank) {
        if (!present[rank]) missing.push_back(options_.names[rank]);
      }
      return PeerLostError("%s did not get ready to exchange data in time",
                           missing.empty() ? "another rank" : absl::StrJoin(missing, ", "));
    }
    changed_.wait_for(lock, std::chrono::milliseconds(20));
  }
  std::vector<std::string> texts = std::move(topics_[number].texts);
  topics_.erase(number);
  return texts;
}

void ControlChannel::CompleteTopicLocked(uint32_t number, Topic* topic) {
  if (std::find(topic->present.begin(), topic->present.end(), false) != topic->present.end())
    return;
  topic->complete = true;
  ByteWriter writer;
  writer.Put(number);
  for (const std::string& text : topic->texts) writer.PutString(text);
  QueueLocked({ControlType::kShared, writer.bytes()}, -1);
  changed_.notify_all();
}

// --- the thread ---

void ControlChannel::Run() {
  while (true) {
    {
      std::lock_guard lock(mutex_);
      if (stopping_) return;
      Beat();
      WriteLocked();
    }
    WaitForNews();
    const int64_t now_ns = NowNs();
    away_ms_ = (now_ns - last_loop_ns_) / 1'000'000;
    last_loop_ns_ = now_ns;
    for (Connection& connection : connections_) Read(&connection);
    CheckSilence();
  }
}

void ControlChannel::WaitForNews() {
  std::vector<pollfd> entries{{wake_read_.get(), POLLIN, 0}};
  int64_t timeout_ms = 0;
  {
    std::lock_guard lock(mutex_);
    for (const Connection& connection : connections_) {
      if (!connection.socket.valid()) continue;
      const bool writes = !connection.outgoing.empty();
      entries.push_back(
          {connection.socket.get(), static_cast<short>(POLLIN | (writes ? POLLOUT : 0)), 0});
    }
    timeout_ms =
        std::clamp<int64_t>((next_beat_ns_ - NowNs()) / 1'000'000 + 1, 1, options_.heartbeat_ms);
  }
  (void)poll(entries.data(), entries.size(), static_cast<int>(timeout_ms));
  char bytes[64];
  while (read(wake_read_.get(), bytes, sizeof(bytes)) > 0) {
  }
}

void ControlChannel::Beat() {
  const int64_t now = NowNs();
  if (now < next_beat_ns_) return;
  next_beat_ns_ = now + options_.heartbeat_ms * 1'000'000;
  Heartbeat heartbeat;
  heartbeat.stamp = options_.rank == 0 ? static_cast<uint64_t>(now) : stamp_;
  if (options_.rank != 0 && stamp_ != 0)
    heartbeat.held_ns = static_cast<uint64_t>(std::max<int64_t>(now - stamp_came_ns_, 0));
  if (options_.meter != nullptr) heartbeat.report = options_.meter->Report();
  const std::vector<std::byte> bytes =
      EncodeFrame({ControlType::kHeartbeat, EncodeHeartbeat(heartbeat)});
  for (Connection& connection : connections_) {
    if (!connection.socket.valid() || connection.outgoing.size() > kMostUnsentHeartbeats) continue;
    connection.outgoing.insert(connection.outgoing.end(), bytes.begin(), bytes.end());
  }
}

void ControlChannel::WriteLocked() {
  for (Connection& connection : connections_) {
    if (!connection.socket.valid()) continue;
    while (!connection.outgoing.empty()) {
      const StatusOr<size_t> sent = SendSome(connection.socket.get(), connection.outgoing);
      // A broken connection shows when it is read.
      if (!sent.ok()) connection.outgoing.clear();
      if (!sent.ok() || *sent == 0) break;
      connection.outgoing.erase(connection.outgoing.begin(),
                                connection.outgoing.begin() + static_cast<ptrdiff_t>(*sent));
    }
  }
  changed_.notify_all();
}

void ControlChannel::Read(Connection* connection) {
  std::byte buffer[4096];
  while (connection->socket.valid()) {
    const StatusOr<size_t> received = ReceiveSome(connection->socket.get(), buffer);
    if (!received.ok()) {
      // The reason may have been lost with the connection.
      if (away_ms_ > options_.peer_timeout_ms) {
        return Lost(connection, absl::StrFormat("ended while %s was stopped or starved for %d ms",
                                                options_.names[options_.rank], away_ms_));
      }
      Lost(connection,
           "closed its connection: it crashed or was killed; its own output or the log of its "
           "machine says why");
      return;
    }
    if (*received == 0) return;
    connection->heard_ns = NowNs();
    connection->incoming.insert(connection->incoming.end(), buffer, buffer + *received);
    ControlFrame frame;
    while (true) {
      const StatusOr<int> taken = TakeFrame(&connection->incoming, &frame);
      if (taken.ok() && *taken == 0) break;
      if (!taken.ok() || !Handle(connection, frame)) {
        Lost(connection, "sent a malformed control message");
        return;
      }
    }
  }
}

bool ControlChannel::Handle(Connection* connection, const ControlFrame& frame) {
  ByteReader reader(frame.body);
  switch (frame.type) {
    case ControlType::kHeartbeat: {
      const StatusOr<Heartbeat> heartbeat = ParseHeartbeat(frame.body);
      if (heartbeat.ok()) HandleHeartbeat(connection, *heartbeat);
      return heartbeat.ok();
    }
    case ControlType::kStop:
      HandleStop(*connection, &reader);
      break;
    case ControlType::kLeave:
      connection->left = true;
      break;
    case ControlType::kShare:
      HandleShare(connection->rank, &reader);
      break;
    case ControlType::kShared:
      HandleShared(&reader);
      break;
  }
  return true;
}

void ControlChannel::HandleHeartbeat(Connection* from, const Heartbeat& heartbeat) {
  const std::lock_guard lock(mutex_);
  if (options_.rank != 0) {
    stamp_ = heartbeat.stamp;
    stamp_came_ns_ = NowNs();
    return;
  }
  from->report = heartbeat.report;
  from->beat_ns = NowNs();
  const auto now = static_cast<uint64_t>(from->beat_ns);
  // A rank that has held no stamp yet, or makes no sense of it.
  if (heartbeat.stamp == 0 || heartbeat.stamp > now || heartbeat.held_ns > now - heartbeat.stamp)
    return;
  const uint64_t round_trip_ns = now - heartbeat.stamp - heartbeat.held_ns;
  from->round_trips_ns[from->next_round_trip++ % kRoundTrips] =
      std::max<int64_t>(static_cast<int64_t>(round_trip_ns), 1);
}

std::vector<RankNews> ControlChannel::News() {
  std::vector<RankNews> news(static_cast<size_t>(options_.size));
  if (options_.meter != nullptr) news[0].report = options_.meter->Report();
  const std::lock_guard lock(mutex_);
  for (const Connection& connection : connections_) {
    RankNews& of = news[static_cast<size_t>(connection.rank)];
    of.report = connection.report;
    if (connection.beat_ns > 0) of.silent_ns = std::max<int64_t>(NowNs() - connection.beat_ns, 0);
    for (const int64_t ns : connection.round_trips_ns) {
      if (ns > 0 && (of.round_trip_ns < 0 || ns < of.round_trip_ns)) of.round_trip_ns = ns;
    }
  }
  return news;
}

void ControlChannel::HandleStop(const Connection& from, ByteReader* reader) {
  const uint8_t kind = reader->Get<uint8_t>();
  const int32_t lost = reader->Get<int32_t>();
  const std::string message = reader->GetString();
  if (!reader->ok() || kind < 1 || kind > 6 || lost >= options_.size) return;
  const Status reason = WithLostRank(MakeError(static_cast<ErrorKind>(kind), message), lost);
  if (options_.rank == 0 && !options_.lifeline->broken()) {
    std::lock_guard lock(mutex_);
    QueueLocked(MakeStop(reason, message), from.rank);
    WriteLocked();
  }
  (void)options_.lifeline->Break(reason);
}

void ControlChannel::HandleShare(int rank, ByteReader* reader) {
  const uint32_t number = reader->Get<uint32_t>();
  std::string text = reader->GetString();
  if (!reader->ok() || options_.rank != 0) return;
  std::lock_guard lock(mutex_);
  Topic& topic = topics_[number];
  topic.texts.resize(options_.size);
  topic.present.resize(options_.size);
  topic.texts[rank] = std::move(text);
  topic.present[rank] = true;
  CompleteTopicLocked(number, &topic);
}

void ControlChannel::HandleShared(ByteReader* reader) {
  const uint32_t number = reader->Get<uint32_t>();
  std::vector<std::string> texts(options_.size);
  for (std::string& text : texts) text = reader->GetString();
  if (!reader->ok()) return;
  std::lock_guard lock(mutex_);
  topics_[number].texts = std::move(texts);
  topics_[number].complete = true;
  changed_.notify_all();
}

// The others hear of it before this rank's own waits end, because those may end the process. So
// does the lost rank: if it was only stopped, it then knows why it is alone.
void ControlChannel::Lost(Connection* connection, const std::string& what) {
  const Status reason = WithLostRank(PeerLostError("%s %s", options_.names[connection->rank], what),
                                     connection->rank);
  std::lock_guard lock(mutex_);
  const bool expected = connection->left || leaving_;
  if (!expected && !options_.lifeline->broken()) {
    QueueLocked(MakeStop(reason, MessageOf(reason)), -1);
    WriteLocked();
  }
  connection->socket.Reset();
  connection->outgoing.clear();
  if (!expected) (void)options_.lifeline->Break(reason);
}

void ControlChannel::CheckSilence() {
  const int64_t now = NowNs();
  const int64_t limit_ns = options_.peer_timeout_ms * 1'000'000;
  // This process itself was stopped or starved: the silence is its own.
  const bool was_away = away_ms_ > std::max<int64_t>(options_.peer_timeout_ms / 2, 1000);
  for (Connection& connection : connections_) {
    if (was_away) connection.heard_ns = now;
    if (!connection.socket.valid() || connection.left || now - connection.heard_ns <= limit_ns)
      continue;
    Lost(&connection,
         absl::StrFormat("has not been heard of for %d ms: it is stopped, overloaded or cut off "
                         "(--peer-timeout-ms)",
                         (now - connection.heard_ns) / 1'000'000));
  }
}

}  // namespace lockstep
