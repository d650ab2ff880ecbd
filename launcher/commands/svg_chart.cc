#include "launcher/commands/svg_chart.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"

namespace lockstep {
namespace {

constexpr int kWidth = 340, kHeight = 264;  // of a panel
constexpr int kLeft = 58, kRight = 14, kTop = 44, kBottom = 46;
constexpr int kInARow = 3;
constexpr int kLineHeight = 18;
constexpr int kSteps = 5;  // of the values' axis
constexpr int kColors = 8;

constexpr const char* kStyle =
    "<style>text{font:12px sans-serif;fill:#222}.h{font-weight:bold}.g{stroke:#ddd}"
    ".c0{--c:#0072b2}.c1{--c:#d55e00}.c2{--c:#009e73}.c3{--c:#cc79a7}.c4{--c:#b8860b}"
    ".c5{--c:#56b4e9}.c6{--c:#7f5fbf}.c7{--c:#777}"
    ".l{stroke:var(--c);fill:none;stroke-width:2}.p{fill:var(--c)}rect.b{fill:#fff}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.g{stroke:#444}rect.b{fill:#161616}"
    ".c0{--c:#4aa8e0}.c1{--c:#ff8a3c}}</style>";

// Whatever is no text of XML becomes a question mark.
std::string Escaped(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    if (c == '<') {
      escaped += "&lt;";
    } else if (c == '&') {
      escaped += "&amp;";
    } else if (c == '>') {
      escaped += "&gt;";
    } else {
      escaped += c >= 0x20 && c < 0x7f ? c : '?';
    }
  }
  return escaped;
}

std::string Text(double x, double y, const std::string& text, const char* more = "") {
  return absl::StrFormat("<text x=\"%.1f\" y=\"%.1f\"%s>%s</text>\n", x, y, more, Escaped(text));
}

constexpr const char* kMiddle = " text-anchor=\"middle\"";
constexpr const char* kEnd = " text-anchor=\"end\"";

class Panel {
 public:
  Panel(const ChartPanel& panel, const std::vector<std::string>& names, int x, int y)
      : panel_(panel), names_(names), x_(x), y_(y) {
    double most = 0;
    for (const ChartLine& line : panel.lines) {
      for (const auto& point : line.points)
        if (point.has_value()) most = std::max(most, point->most);
    }
    top_ = RoundUp(most);
  }

  std::string Draw() const {
    std::string svg = Text(x_ + kLeft, y_ + 16, panel_.title, " class=\"h\"");
    for (int step = 0; step <= kSteps; ++step) {
      const double value = top_ * step / kSteps;
      svg += absl::StrFormat("<path class=\"g\" d=\"M%d %.1fH%d\"/>\n", x_ + kLeft, Y(value),
                             x_ + kWidth - kRight);
      svg += Text(x_ + kLeft - 6, Y(value) + 4, absl::StrFormat("%g", value), kEnd);
    }
    for (size_t place = 0; place < panel_.places.size(); ++place)
      svg += Text(X(place), y_ + kHeight - kBottom + 16, panel_.places[place], kMiddle);
    svg +=
        Text(x_ + (kLeft + kWidth - kRight) / 2.0, y_ + kHeight - 12, panel_.places_title, kMiddle);
    svg += Text(x_ + kLeft - 6, y_ + kTop - 11, panel_.values_title, kEnd);
    for (const ChartLine& line : panel_.lines) svg += DrawLine(line);
    return svg;
  }

 private:
  double X(size_t place) const {
    const double width = kWidth - kLeft - kRight;
    return x_ + kLeft +
           width * (static_cast<double>(place) + 0.5) / static_cast<double>(panel_.places.size());
  }
  double Y(double value) const {
    return y_ + kHeight - kBottom - (kHeight - kTop - kBottom) * value / top_;
  }

  std::string DrawLine(const ChartLine& line) const {
    const auto index = std::find(names_.begin(), names_.end(), line.name) - names_.begin();
    std::string svg = absl::StrFormat("<g class=\"c%d\">\n", index % kColors);
    std::string path;
    for (size_t place = 0; place < line.points.size(); ++place) {
      const std::optional<ChartPoint>& point = line.points[place];
      if (!point.has_value()) continue;
      const double x = X(place);
      path += absl::StrFormat("%s%.1f %.1f", path.empty() ? "M" : "L", x, Y(point->median));
      svg += absl::StrFormat("<path class=\"l\" d=\"M%.1f %.1fV%.1f\"/>\n", x, Y(point->least),
                             Y(point->most));
      svg += absl::StrFormat(
          "<circle class=\"p\" cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\"><title>%s, %s: %.2f (%.2f .. "
          "%.2f)</title></circle>\n",
          x, Y(point->median), Escaped(line.name), Escaped(panel_.places[place]), point->median,
          point->least, point->most);
    }
    if (!path.empty()) svg += "<path class=\"l\" d=\"" + path + "\"/>\n";
    return svg + "</g>\n";
  }

  const ChartPanel& panel_;
  const std::vector<std::string>& names_;
  const int x_, y_;
  double top_ = 1;
};

}  // namespace

double RoundUp(double value) {
  if (!(value > 0)) return 1;
  const double power = std::pow(10, std::floor(std::log10(value)));
  for (const double factor : {1.0, 2.0, 2.5, 5.0}) {
    if (factor * power >= value) return factor * power;
  }
  return 10 * power;
}

std::string DrawCharts(const std::string& title, const std::vector<std::string>& notes,
                       const std::vector<ChartPanel>& panels) {
  std::vector<std::string> names;
  for (const ChartPanel& panel : panels) {
    for (const ChartLine& line : panel.lines) {
      if (std::find(names.begin(), names.end(), line.name) == names.end())
        names.push_back(line.name);
    }
  }
  std::string body = Text(kLeft, 24, title, " class=\"h\"");
  int y = 24 + kLineHeight;
  for (const std::string& note : notes) {
    body += Text(kLeft, y, note);
    y += kLineHeight;
  }
  const int width = kInARow * kWidth;
  const int each = (width - kLeft) / 4;
  for (size_t i = 0; i < names.size(); ++i) {
    const int x = kLeft + each * static_cast<int>(i % 4);
    if (i > 0 && i % 4 == 0) y += kLineHeight;
    body +=
        absl::StrFormat("<g class=\"c%d\"><circle class=\"p\" cx=\"%d\" cy=\"%d\" r=\"4\"/></g>\n",
                        i % kColors, x + 4, y - 4);
    body += Text(x + 14, y, names[i]);
  }
  y += kLineHeight;
  for (size_t i = 0; i < panels.size(); ++i) {
    const int column = static_cast<int>(i) % kInARow, row = static_cast<int>(i) / kInARow;
    body += Panel(panels[i], names, column * kWidth, y + row * kHeight).Draw();
  }
  const int rows = (static_cast<int>(panels.size()) + kInARow - 1) / kInARow;
  const int height = y + rows * kHeight;
  return absl::StrFormat(
             "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 "
             "%d %d\">\n%s\n<rect class=\"b\" width=\"%d\" height=\"%d\"/>\n",
             width, height, width, height, kStyle, width, height) +
         body + "</svg>\n";
}

}  // namespace lockstep
