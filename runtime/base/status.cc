#include "runtime/base/status.h"

#include "absl/strings/cord.h"

namespace lockstep {
namespace {

constexpr char kKindUrl[] = "lockstep/kind";
constexpr char kLostRankUrl[] = "lockstep/lost-rank";

absl::StatusCode CodeOf(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kInternal:
      return absl::StatusCode::kInternal;
    case ErrorKind::kUsage:
      return absl::StatusCode::kInvalidArgument;
    case ErrorKind::kModel:
      return absl::StatusCode::kFailedPrecondition;
    case ErrorKind::kPeerLost:
      return absl::StatusCode::kUnavailable;
    case ErrorKind::kRequest:
      return absl::StatusCode::kInvalidArgument;
    case ErrorKind::kInterrupted:
      return absl::StatusCode::kCancelled;
  }
  return absl::StatusCode::kInternal;
}

}  // namespace

Status MakeError(ErrorKind kind, absl::StatusCode code, std::string_view message) {
  Status status(code, absl::string_view(message.data(), message.size()));
  status.SetPayload(kKindUrl,
                    absl::Cord(std::string(1, static_cast<char>('0' + static_cast<int>(kind)))));
  return status;
}

Status MakeError(ErrorKind kind, std::string_view message) {
  return MakeError(kind, CodeOf(kind), message);
}

Status InterruptedError() { return MakeError(ErrorKind::kInterrupted, "interrupted"); }

Status WithLostRank(Status status, int rank) {
  if (rank >= 0) status.SetPayload(kLostRankUrl, absl::Cord(std::to_string(rank)));
  return status;
}

int LostRank(const Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kLostRankUrl);
  return payload.has_value() ? std::stoi(std::string(*payload)) : -1;
}

ErrorKind KindOf(const Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kKindUrl);
  if (!payload.has_value() || payload->size() != 1) return ErrorKind::kInternal;
  const int kind = std::string(*payload)[0] - '0';
  if (kind < 1 || kind > 6) return ErrorKind::kInternal;
  return static_cast<ErrorKind>(kind);
}

int ExitCode(const Status& status) {
  if (status.ok()) return 0;
  switch (KindOf(status)) {
    case ErrorKind::kInternal:
      return 1;
    case ErrorKind::kUsage:
      return 2;
    case ErrorKind::kRequest:
      return 2;
    case ErrorKind::kModel:
      return 3;
    case ErrorKind::kPeerLost:
      return 4;
    case ErrorKind::kInterrupted:
      return 130;
  }
  return 1;
}

Status Annotate(const Status& status, std::string_view prefix) {
  if (status.ok()) return status;
  return WithLostRank(
      MakeError(KindOf(status), status.code(), std::string(prefix) + ": " + MessageOf(status)),
      LostRank(status));
}

std::string MessageOf(const Status& status) { return std::string(status.message()); }

}  // namespace lockstep
