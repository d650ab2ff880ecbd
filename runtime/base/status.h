// Errors are values with a remedy: what went wrong, where (rank, host, file, key), what to do.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_format.h"

namespace lockstep {

using absl::OkStatus;
using absl::Status;
using absl::StatusOr;
template <typename... Args>
using Format = absl::FormatSpec<Args...>;

// What kind of trouble, independent of the gRPC-style code. It decides the exit code of the process
// and travels with an abort from rank to rank.
enum class ErrorKind {
  kInternal = 1,  // exit 1: a bug or an operating-system refusal that no flag explains
  kUsage = 2,     // exit 2: flags, YAML, environment, a refused handshake, a port in use
  kModel = 3,     // exit 3: checkpoint, tokenizer, template
  kPeerLost = 4,  // exit 4: another rank died, stopped or disagreed
  kRequest =
      5,  // one request is at fault (too long, bad parameter); exit 2 where there is only one
  kInterrupted = 6,  // exit 130: Ctrl-C or SIGTERM
};

// Makes a status of `kind`; the absl code follows from the kind. `message` is one sentence or two:
// what and where, then the remedy.
Status MakeError(ErrorKind kind, std::string_view message);
// Same with an explicit code, for request errors that gRPC clients tell apart.
Status MakeError(ErrorKind kind, absl::StatusCode code, std::string_view message);

template <typename... Args>
Status InternalError(const Format<Args...>& format, const Args&... args) {
  return MakeError(ErrorKind::kInternal, absl::StrFormat(format, args...));
}
template <typename... Args>
Status UsageError(const Format<Args...>& format, const Args&... args) {
  return MakeError(ErrorKind::kUsage, absl::StrFormat(format, args...));
}
template <typename... Args>
Status ModelError(const Format<Args...>& format, const Args&... args) {
  return MakeError(ErrorKind::kModel, absl::StrFormat(format, args...));
}
template <typename... Args>
Status RequestError(const Format<Args...>& format, const Args&... args) {
  return MakeError(ErrorKind::kRequest, absl::StrFormat(format, args...));
}
// The message must name the rank that was lost ("rank 2 (spark-3, pid 4711) ...").
template <typename... Args>
Status PeerLostError(const Format<Args...>& format, const Args&... args) {
  return MakeError(ErrorKind::kPeerLost, absl::StrFormat(format, args...));
}
Status InterruptedError();
// A lost peer's error with the rank whose process is gone, hangs or cannot be reached: another one
// in its place would do. Not so where ranks disagree about bits.
Status WithLostRank(Status status, int rank);
// That rank; -1: none.
int LostRank(const Status& status);

// The kind that MakeError gave; kInternal for statuses made elsewhere. Undefined for an ok status.
ErrorKind KindOf(const Status& status);
// The process exit code: 0, 1, 2, 3, 4 or 130.
int ExitCode(const Status& status);
// The same error with "prefix: " before its message; kind, code and lost rank are kept.
Status Annotate(const Status& status, std::string_view prefix);
// The message as a std::string (absl::string_view is not std::string_view in Debian 12's abseil).
std::string MessageOf(const Status& status);

}  // namespace lockstep

#define LOCKSTEP_RETURN_IF_ERROR(expression)                        \
  do {                                                              \
    if (::lockstep::Status status_ = (expression); !status_.ok()) { \
      return status_;                                               \
    }                                                               \
  } while (false)

#define LOCKSTEP_CONCAT_INNER(a, b) a##b
#define LOCKSTEP_CONCAT(a, b) LOCKSTEP_CONCAT_INNER(a, b)
// LOCKSTEP_ASSIGN_OR_RETURN(auto x, MakeX());
#define LOCKSTEP_ASSIGN_OR_RETURN(target, expression) \
  LOCKSTEP_ASSIGN_OR_RETURN_IMPL(LOCKSTEP_CONCAT(status_or_, __LINE__), target, expression)
#define LOCKSTEP_ASSIGN_OR_RETURN_IMPL(holder, target, expression) \
  auto holder = (expression);                                      \
  if (!holder.ok()) return std::move(holder).status();             \
  target = std::move(holder).value()
