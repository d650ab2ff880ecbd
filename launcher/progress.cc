#include "launcher/progress.h"

#include <unistd.h>

#include <cstdio>
#include <utility>

#include "absl/strings/str_format.h"

namespace lockstep {
namespace {

constexpr int kBarCells = 30;
constexpr int64_t kRedrawEveryMs = 100;
constexpr int64_t kNsPerMs = 1'000'000;

}  // namespace

std::string FormatBytes(uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  for (; value >= 1000 && unit < 4; ++unit) value /= 1024;
  const int decimals = value < 10 && unit > 0 ? 1 : 0;
  return absl::StrFormat("%.*f %s", decimals, value, kUnits[unit]);
}

ProgressReport::ProgressReport(std::string what, Style style,
                               std::function<void(const std::string&)> write)
    : what_(std::move(what)), style_(style), write_(std::move(write)) {}

ProgressReport::ProgressReport(std::string what)
    : ProgressReport(std::move(what), {.terminal = isatty(STDERR_FILENO) != 0},
                     [](const std::string& text) { std::fputs(text.c_str(), stderr); }) {}

void ProgressReport::Update(uint64_t bytes_done, uint64_t bytes_total, int64_t now_ns) {
  if (bytes_total == 0) return;
  if (start_ns_ < 0) {
    start_ns_ = now_ns;
    last_ns_ = now_ns;
  }
  if (now_ns - start_ns_ < style_.quiet_ms * kNsPerMs) return;
  const int64_t since_ms = (now_ns - last_ns_) / kNsPerMs;
  const bool complete = bytes_done >= bytes_total;
  if (style_.terminal) {
    if (drawn_ && !complete && since_ms < kRedrawEveryMs) return;
    DrawBar(bytes_done, bytes_total, now_ns);
    last_ns_ = now_ns;
    return;
  }
  const int tenth = static_cast<int>(bytes_done * 10.0 / static_cast<double>(bytes_total));
  const bool step = tenth > last_tenth_ && since_ms >= style_.line_at_least_ms;
  if (!step && since_ms < style_.line_every_ms) return;
  WriteLine(bytes_done, bytes_total, now_ns);
  last_tenth_ = tenth;
  last_ns_ = now_ns;
}

void ProgressReport::Finish() {
  if (style_.terminal && drawn_) write_("\n");
  drawn_ = false;
}

void ProgressReport::DrawBar(uint64_t done, uint64_t total, int64_t now_ns) {
  const auto cells =
      static_cast<int>(static_cast<double>(done) * kBarCells / static_cast<double>(total));
  std::string bar(std::min(cells, kBarCells), '#');
  bar.resize(kBarCells, '.');
  // "\x1b[K" clears what a longer line left behind.
  write_(absl::StrFormat("\r%s [%s] %3.0f %% %s\x1b[K", what_, bar,
                         100.0 * static_cast<double>(done) / static_cast<double>(total),
                         Figures(done, total, now_ns)));
  drawn_ = true;
}

void ProgressReport::WriteLine(uint64_t done, uint64_t total, int64_t now_ns) {
  write_(absl::StrFormat("%s: %.0f %%, %s\n", what_,
                         100.0 * static_cast<double>(done) / static_cast<double>(total),
                         Figures(done, total, now_ns)));
}

std::string ProgressReport::Figures(uint64_t done, uint64_t total, int64_t now_ns) const {
  std::string text = FormatBytes(done) + " of " + FormatBytes(total);
  const double seconds = static_cast<double>(now_ns - start_ns_) * 1e-9;
  if (seconds < 0.1 || done == 0) return text;
  const double rate = static_cast<double>(done) / seconds;
  text += ", " + FormatBytes(static_cast<uint64_t>(rate)) + "/s";
  if (done < total)
    text += absl::StrFormat(", %.0f s left", static_cast<double>(total - done) / rate);
  return text;
}

}  // namespace lockstep
