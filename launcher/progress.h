// How far loading is: a bar that redraws itself on a terminal, plain lines elsewhere.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace lockstep {

class ProgressReport {
 public:
  struct Style {
    bool terminal = false;           // redraw one line instead of adding lines
    int64_t quiet_ms = 0;            // nothing is shown before this long
    int64_t line_every_ms = 2'000;   // plain lines: at least this often,
    int64_t line_at_least_ms = 500;  // and at every 10 %, but not closer than this
  };
  // `write` receives finished text (with "\r" or "\n"); `what` begins each line ("loading").
  ProgressReport(std::string what, Style style, std::function<void(const std::string&)> write);
  // To stderr, redrawn if that is a terminal.
  explicit ProgressReport(std::string what);

  // `now_ns` on any monotonic clock. Call as often as you like.
  void Update(uint64_t bytes_done, uint64_t bytes_total, int64_t now_ns);
  // Ends the line on a terminal. Nothing is shown afterwards.
  void Finish();

 private:
  void DrawBar(uint64_t done, uint64_t total, int64_t now_ns);
  void WriteLine(uint64_t done, uint64_t total, int64_t now_ns);
  // "1.2 GiB of 3.4 GiB, 850 MiB/s, 3 s left"
  std::string Figures(uint64_t done, uint64_t total, int64_t now_ns) const;

  const std::string what_;
  const Style style_;
  const std::function<void(const std::string&)> write_;
  int64_t start_ns_ = -1;
  int64_t last_ns_ = 0;
  int last_tenth_ = 0;
  bool drawn_ = false;
};

// "1.2 GiB", "350 MiB", "12 KiB", "7 B".
std::string FormatBytes(uint64_t bytes);

}  // namespace lockstep
