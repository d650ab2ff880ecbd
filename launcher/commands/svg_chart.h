// Charts as SVG text: one file without scripts, fonts or anything else from elsewhere, in light and
// dark as the reader's program wants it.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace lockstep {

struct ChartPoint {
  double median = 0, least = 0, most = 0;
};
struct ChartLine {
  std::string name;                               // the same name is the same color in all panels
  std::vector<std::optional<ChartPoint>> points;  // one per place of the panel
};
// Values from 0 up over places that stand at equal distances.
struct ChartPanel {
  std::string title;
  std::string places_title, values_title;
  std::vector<std::string> places;
  std::vector<ChartLine> lines;
};

// All panels, three in a row, under one title, one legend and lines of notes. Any text.
std::string DrawCharts(const std::string& title, const std::vector<std::string>& notes,
                       const std::vector<ChartPanel>& panels);

// The least number of the kind 1, 2, 2.5 or 5 times a power of ten that is `value` or more; 1 where
// `value` is not positive.
double RoundUp(double value);

}  // namespace lockstep
