// Log lines go to stderr, one per event, prefixed with the rank. Nothing is logged inside a step.
#pragma once

#include <string>

#include "absl/strings/str_format.h"

namespace lockstep::log {

enum class Level { kDebug, kInfo, kWarning, kError, kOff };

// Process-wide settings; call before threads start. `rank` < 0 leaves the prefix out.
void Configure(Level level, int rank);
bool Enabled(Level level);
void Write(Level level, const std::string& message);

template <typename... Args>
void Debug(const absl::FormatSpec<Args...>& format, const Args&... args) {
  if (Enabled(Level::kDebug)) Write(Level::kDebug, absl::StrFormat(format, args...));
}
template <typename... Args>
void Info(const absl::FormatSpec<Args...>& format, const Args&... args) {
  if (Enabled(Level::kInfo)) Write(Level::kInfo, absl::StrFormat(format, args...));
}
template <typename... Args>
void Warning(const absl::FormatSpec<Args...>& format, const Args&... args) {
  if (Enabled(Level::kWarning)) Write(Level::kWarning, absl::StrFormat(format, args...));
}
template <typename... Args>
void Error(const absl::FormatSpec<Args...>& format, const Args&... args) {
  if (Enabled(Level::kError)) Write(Level::kError, absl::StrFormat(format, args...));
}

}  // namespace lockstep::log
