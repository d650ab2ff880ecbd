#include "runtime/base/log.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <utility>

#include "runtime/base/log_event.h"
#include "spdlog/sinks/stdout_sinks.h"
#include "spdlog/spdlog.h"

namespace lockstep::log {
namespace {

std::atomic<Level> g_level{Level::kInfo};
std::atomic<Form> g_form{Form::kText};

constexpr int kPipeBytes = 1 << 20;
constexpr int kMessageWaitMs = 1000;  // they are rare and matter more than events

void SetPattern(spdlog::logger& logger, int rank) {
  const std::string number = std::to_string(rank);
  if (g_form == Form::kJson) {
    const std::string member = rank < 0 ? "" : R"("rank":)" + number + ",";
    logger.set_pattern(R"({"time":"%Y-%m-%dT%H:%M:%S.%eZ","level":"%l",)" + member + "%v}",
                       spdlog::pattern_time_type::utc);
  } else {
    logger.set_pattern("%H:%M:%S.%e %L " + (rank < 0 ? "" : "rank " + number + ": ") + "%v");
  }
}

spdlog::logger& Logger() {
  static const std::shared_ptr<spdlog::logger> logger = [] {
    auto made = std::make_shared<spdlog::logger>("lockstep",
                                                 std::make_shared<spdlog::sinks::stderr_sink_mt>());
    SetPattern(*made, -1);
    made->set_level(spdlog::level::trace);
    made->flush_on(spdlog::level::trace);
    return made;
  }();
  return *logger;
}

std::string MessageText(const std::string& message) {
  return g_form == Form::kJson ? R"("message":)" + Quoted(message) : message;
}

// Whether a line can be written without waiting for who reads stderr.
bool HasRoom(int wait_ms) {
  pollfd room = {STDERR_FILENO, POLLOUT, 0};
  return poll(&room, 1, wait_ms) != 0;
}

// Threads that answer clients write lines, too: a reader that has stopped costs lines, not time.
void WriteLine(Level level, const std::string& line, int wait_ms) {
  constexpr spdlog::level::level_enum kLevels[] = {spdlog::level::debug, spdlog::level::info,
                                                   spdlog::level::warn, spdlog::level::err};
  if (level == Level::kOff) return;
  if (wait_ms > 0) (void)HasRoom(wait_ms);
  static std::mutex mutex;
  static int64_t lost = 0;
  const std::lock_guard lock(mutex);
  if (!HasRoom(0)) {
    ++lost;
    return;
  }
  if (const int64_t before = std::exchange(lost, 0); before > 0) {
    const std::string told =
        absl::StrFormat("%d lines of the log are missing here: stderr was not being read", before);
    Logger().warn("{}", MessageText(told));
  }
  Logger().log(kLevels[static_cast<int>(level)], "{}", line);
}

// Bytes of the character that `text` begins with; 0: it is no UTF-8.
size_t CharacterBytes(std::string_view text) {
  const auto at = [&](size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  const auto follows = [&](size_t i, unsigned low = 0x80, unsigned high = 0xBF) {
    return at(i) >= low && at(i) <= high;
  };
  const unsigned lead = at(0);
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return follows(1) ? 2 : 0;
  if (lead >= 0xE0 && lead <= 0xEF) {
    const bool second = follows(1, lead == 0xE0 ? 0xA0 : 0x80, lead == 0xED ? 0x9F : 0xBF);
    return second && follows(2) ? 3 : 0;
  }
  if (lead < 0xF0 || lead > 0xF4) return 0;
  const bool second = follows(1, lead == 0xF0 ? 0x90 : 0x80, lead == 0xF4 ? 0x8F : 0xBF);
  return second && follows(2) && follows(3) ? 4 : 0;
}

}  // namespace

void Configure(Level level, int rank) {
  g_level = level;
  SetPattern(Logger(), rank);
#ifdef F_SETPIPE_SZ
  // Bursts fit; where stderr is no pipe this does nothing.
  (void)fcntl(STDERR_FILENO, F_SETPIPE_SZ, kPipeBytes);
#endif
}

void SetForm(Form form) { g_form = form; }

bool Enabled(Level level) { return level >= g_level.load(std::memory_order_relaxed); }

void Write(Level level, const std::string& message) {
  WriteLine(level, MessageText(message), kMessageWaitMs);
}

void Event(Level level, std::string_view what, std::span<const Fact> facts) {
  if (!Enabled(level)) return;
  const bool json = g_form == Form::kJson;
  std::string line = json ? R"("event":)" + Quoted(what) : std::string(what);
  for (const Fact& fact : facts) {
    line += json ? absl::StrFormat(R"(,"%s":)", fact.name()) : absl::StrFormat(" %s=", fact.name());
    // Text that is one plain word needs no quotes to be read.
    const bool plain = !fact.value().empty() &&
                       fact.value().find_first_of(" \"\\=") == std::string::npos &&
                       Quoted(fact.value()).size() == fact.value().size() + 2;
    line += fact.is_text() && (json || !plain) ? Quoted(fact.value()) : fact.value();
  }
  WriteLine(level, line, 0);
}

std::string Quoted(std::string_view text) {
  std::string out = "\"";
  while (!text.empty()) {
    const size_t bytes = CharacterBytes(text);
    const char c = text[0];
    if (bytes == 0) {
      out += "\\ufffd";
    } else if (c == '"' || c == '\\') {
      out += {'\\', c};
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      out += absl::StrFormat("\\u%04x", c);
    } else {
      out += text.substr(0, bytes);
    }
    text.remove_prefix(bytes == 0 ? 1 : bytes);
  }
  return out + "\"";
}

}  // namespace lockstep::log
