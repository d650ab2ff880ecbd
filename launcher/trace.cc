#include "launcher/trace.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>
#include <utility>

#include "absl/strings/str_format.h"
#include "runtime/base/file.h"
#include "runtime/base/lines.h"
#include "runtime/base/split_mix.h"
#include "runtime/weights/bounded_json.h"

namespace lockstep {
namespace {

using nlohmann::json;

constexpr uint64_t kMostBytes = uint64_t{4} << 30;
constexpr double kMostSeconds = 1e9;
constexpr int64_t kMostTokens = 16'777'216;
constexpr int64_t kMostGroups = int64_t{1} << 40;
constexpr size_t kMostUserBytes = 256;
constexpr size_t kMostLineValues = 32;

Status WrongWord(const char* key, const char* wanted) {
  return UsageError("'%s' must be %s", key, wanted);
}

Status ReadCount(const json& value, const char* key, int64_t least, int64_t most, int64_t* out) {
  const bool whole = value.is_number_unsigned() && value.get<uint64_t>() <= INT64_MAX;
  const int64_t count = whole ? value.get<int64_t>() : -1;
  if (count < least || count > most)
    return WrongWord(key, absl::StrFormat("a whole number, %d to %d", least, most).c_str());
  *out = count;
  return OkStatus();
}

Status ReadKey(const std::string& key, const json& value, TraceRequest* request) {
  if (key == "at_s") {
    const double at_s = value.is_number() ? value.get<double>() : -1;
    if (!(at_s >= 0 && at_s <= kMostSeconds)) return WrongWord("at_s", "seconds, 0 to 1e9");
    request->at_s = at_s;
    return OkStatus();
  }
  if (key == "prompt_tokens")
    return ReadCount(value, "prompt_tokens", 1, kMostTokens, &request->prompt_tokens);
  if (key == "output_tokens")
    return ReadCount(value, "output_tokens", 1, kMostTokens, &request->output_tokens);
  if (key == "prefix_group")
    return ReadCount(value, "prefix_group", 0, kMostGroups, &request->prefix_group);
  if (key == "prefix_tokens")
    return ReadCount(value, "prefix_tokens", 0, kMostTokens, &request->prefix_tokens);
  if (key != "user") return UsageError("'%s' is no key of a request", key);
  if (!value.is_string() || value.get_ref<const std::string&>().size() > kMostUserBytes)
    return WrongWord("user", "a text of at most 256 bytes");
  request->user = value.get<std::string>();
  return OkStatus();
}

Status ReadRequest(std::string_view line, double not_before_s, TraceRequest* request) {
  const json word = ParseBoundedJson(line, /*deepest=*/2, kMostLineValues);
  if (!word.is_object()) return UsageError("not a JSON object with the keys of a request");
  for (const char* key : {"at_s", "prompt_tokens", "output_tokens"}) {
    if (!word.contains(key)) return UsageError("'%s' is missing", key);
  }
  if (word.contains("prefix_group") != word.contains("prefix_tokens"))
    return UsageError("'prefix_group' and 'prefix_tokens' go together");
  for (const auto& [key, value] : word.items())
    LOCKSTEP_RETURN_IF_ERROR(ReadKey(key, value, request));
  if (request->prefix_tokens > request->prompt_tokens) {
    return UsageError("'prefix_tokens' is %d, but the prompt has %d tokens", request->prefix_tokens,
                      request->prompt_tokens);
  }
  if (request->at_s < not_before_s) {
    return UsageError("'at_s' is %g, but the request above comes at %g: sort the lines by time",
                      request->at_s, not_before_s);
  }
  return OkStatus();
}

// Draws of one stream: element i is the same on every machine.
class Draws {
 public:
  explicit Draws(uint64_t key) : key_(MixBits(key)) {}

  // In (0, 1).
  double Part() { return (static_cast<double>(Bits() >> 11) + 0.5) * 0x1p-53; }
  double Exponential() { return -std::log(Part()); }
  // Box and Muller, 1958.
  double Normal() {
    const double radius = std::sqrt(2 * Exponential());
    return radius * std::cos(2 * std::numbers::pi * Part());
  }
  int64_t Below(int64_t count) {
    return std::min(count - 1, static_cast<int64_t>(Part() * static_cast<double>(count)));
  }

 private:
  uint64_t Bits() { return MixBits(key_ + kGoldenGamma * ++number_); }

  const uint64_t key_;
  uint64_t number_ = 0;
};

int64_t DrawLength(const TraceLengths& lengths, Draws& draws) {
  // The logarithm's mean is lower, so that the length's is the one that was asked for.
  const double spread = lengths.spread;
  const double length = spread > 0
                            ? lengths.mean * std::exp(spread * draws.Normal() - spread * spread / 2)
                            : lengths.mean;
  return static_cast<int64_t>(
      std::clamp(std::round(length), 1.0, static_cast<double>(std::max<int64_t>(lengths.most, 1))));
}

// Against the mean of a day.
double RateAt(double at_s) {
  return 1 - 0.8 * std::cos(2 * std::numbers::pi * (at_s / 3600 - 3) / 24);
}
constexpr double kHighestRate = 1.8;

}  // namespace

StatusOr<std::vector<TraceRequest>> ParseTrace(std::string_view text, const std::string& name) {
  std::vector<TraceRequest> trace;
  Lines lines(text);
  for (std::string_view line; lines.Next(&line);) {
    TraceRequest request;
    const double before_s = trace.empty() ? 0 : trace.back().at_s;
    if (const Status read = ReadRequest(line, before_s, &request); !read.ok())
      return UsageError("%s:%d: %s", name, lines.number(), MessageOf(read));
    trace.push_back(std::move(request));
  }
  if (trace.empty()) return UsageError("%s: no requests; a line is one as JSON", name);
  return trace;
}

StatusOr<std::vector<TraceRequest>> ReadTrace(const std::string& path) {
  const StatusOr<std::string> text = ReadTextFile(path, kMostBytes);
  if (!text.ok()) return UsageError("--trace: %s", MessageOf(text.status()));
  return ParseTrace(*text, path);
}

std::string TraceText(const std::vector<TraceRequest>& trace) {
  std::string text;
  for (const TraceRequest& request : trace) {
    absl::StrAppendFormat(&text, R"({"at_s": %.6f, "prompt_tokens": %d, "output_tokens": %d)",
                          request.at_s, request.prompt_tokens, request.output_tokens);
    if (request.prefix_group >= 0) {
      absl::StrAppendFormat(&text, R"(, "prefix_group": %d, "prefix_tokens": %d)",
                            request.prefix_group, request.prefix_tokens);
    }
    if (!request.user.empty()) {
      text +=
          ", \"user\": " + json(request.user).dump(-1, ' ', true, json::error_handler_t::replace);
    }
    text += "}\n";
  }
  return text;
}

std::vector<int32_t> PromptOf(const TraceRequest& request, uint64_t number, uint64_t seed,
                              int64_t vocab_size) {
  const uint64_t own = MixBits(seed ^ MixBits(2 * number + 1));
  const uint64_t shared = MixBits(seed ^ MixBits(2 * static_cast<uint64_t>(request.prefix_group)));
  std::vector<int32_t> tokens(static_cast<size_t>(request.prompt_tokens));
  for (size_t i = 0; i < tokens.size(); ++i) {
    const uint64_t key = static_cast<int64_t>(i) < request.prefix_tokens ? shared : own;
    tokens[i] =
        static_cast<int32_t>(MixBits(key + kGoldenGamma * i) % static_cast<uint64_t>(vocab_size));
  }
  return tokens;
}

std::vector<TraceRequest> MakeTrace(const TraceShape& shape) {
  Draws draws(shape.seed);
  const double most = shape.rate * (shape.day ? kHighestRate : 1);
  std::vector<TraceRequest> trace;
  double at_s = 0;
  while (true) {
    // Times at the highest rate, of which the right part is kept (thinning; Lewis, Shedler, 1979).
    at_s += draws.Exponential() / most;
    if (!(at_s < shape.duration_s)) return trace;
    if (shape.day && draws.Part() * kHighestRate >= RateAt(at_s)) continue;
    TraceRequest request;
    request.at_s = std::floor(at_s * 1e6) * 1e-6;
    request.prompt_tokens = DrawLength(shape.prompt, draws);
    request.output_tokens = DrawLength(shape.output, draws);
    if (shape.prefix_groups > 0 && shape.prefix_tokens > 0) {
      request.prefix_group = draws.Below(shape.prefix_groups);
      request.prefix_tokens = shape.prefix_tokens;
      request.prompt_tokens += shape.prefix_tokens;
    }
    if (shape.users > 0) request.user = absl::StrFormat("%d", draws.Below(shape.users));
    trace.push_back(std::move(request));
  }
}

}  // namespace lockstep
