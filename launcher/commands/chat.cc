// lockstep chat: a conversation in the terminal. Lines of standard input are the user's turns.
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "launcher/commands/commands.h"
#include "launcher/commands/generation.h"
#include "launcher/commands/printer.h"
#include "launcher/process.h"
#include "runtime/base/log.h"
#include "runtime/text/chat_template.h"

namespace lockstep {
namespace {

constexpr size_t kLineLimitBytes = size_t{1} << 20;

// Reads lines from standard input without holding up Ctrl-C or the news that a rank was lost.
class LineReader {
 public:
  // The next line without its end; nothing at the end of input or when `stop()` says so.
  template <typename Stop>
  std::optional<std::string> Next(const Stop& stop) {
    while (true) {
      const size_t end = buffer_.find('\n');
      if (end != std::string::npos) {
        std::string line = buffer_.substr(0, end);
        buffer_.erase(0, end + 1);
        return line;
      }
      if (closed_ || buffer_.size() > kLineLimitBytes) {
        if (buffer_.empty()) return std::nullopt;
        return std::exchange(buffer_, {});
      }
      if (stop()) return std::nullopt;
      pollfd input = {STDIN_FILENO, POLLIN, 0};
      if (poll(&input, 1, 100) <= 0) continue;
      char bytes[4096];
      const ssize_t count = read(STDIN_FILENO, bytes, sizeof(bytes));
      if (count > 0) buffer_.append(bytes, static_cast<size_t>(count));
      if (count == 0 || (count < 0 && errno != EINTR)) closed_ = true;
    }
  }

 private:
  std::string buffer_;
  bool closed_ = false;
};

class Conversation {
 public:
  Conversation(const Options& options, const ModelText& text, ChatFamily family, Engine& engine)
      : options_(options), text_(text), family_(family), engine_(engine) {
    Reset();
  }

  void Reset() {
    chat_ = ChatRequest();
    if (!options_.system.empty()) chat_.AddMessage("system", options_.system);
    if (options_.thinking != "auto") chat_.enable_thinking = options_.thinking == "on";
  }

  // One turn; the answer joins the conversation. After an error the turn is forgotten.
  Status Ask(const std::string& line) {
    const ChatRequest before = chat_;
    chat_.AddMessage("user", line);
    const Status status = Answer();
    if (!status.ok()) chat_ = before;
    return status;
  }

 private:
  Status Answer() {
    LOCKSTEP_ASSIGN_OR_RETURN(const std::string prompt, RenderChat(family_, chat_));
    Request request = RequestFromOptions(options_, text_);
    request.prompt = text_.tokenizer->Encode(prompt);
    ReplyParser parser(ReplyStartOf(prompt), JsonValue());
    AnswerPrinter printer(false);
    Generated generated;
    const Status status = Generate(
        engine_, std::move(request), &parser, [&](const ReplyEvent& event) { printer.Show(event); },
        &generated);
    printer.End();
    LOCKSTEP_RETURN_IF_ERROR(status);
    chat_.AddAssistantMessage(generated.text, generated.reasoning);
    if (isatty(STDERR_FILENO) == 1) {
      std::fprintf(stderr, "\033[2m(%lld + %lld tokens, %.1f tokens/s)\033[0m\n",
                   static_cast<long long>(generated.summary.usage.prompt_tokens),
                   static_cast<long long>(generated.summary.usage.completion_tokens),
                   DecodeRate(generated.summary));
    }
    return OkStatus();
  }

  const Options& options_;
  const ModelText& text_;
  ChatFamily family_;
  Engine& engine_;
  ChatRequest chat_;
};

Status Converse(const Options& options, const ModelText& text, ChatFamily family, Engine& engine) {
  const bool terminal = isatty(STDIN_FILENO) == 1 && isatty(STDERR_FILENO) == 1;
  if (terminal) std::fputs("Ask away; /reset starts anew, /quit ends.\n", stderr);
  Conversation conversation(options, text, family, engine);
  LineReader reader;
  while (true) {
    if (terminal) std::fputs("> ", stderr);
    const std::optional<std::string> line =
        reader.Next([&] { return Interrupted() || !engine.status().ok(); });
    if (Interrupted()) return InterruptedError();
    LOCKSTEP_RETURN_IF_ERROR(engine.status());
    if (!line || *line == "/quit" || *line == "/exit") return OkStatus();
    if (line->find_first_not_of(" \t\r") == std::string::npos) continue;
    if (*line == "/reset") {
      conversation.Reset();
      std::fputs("(new conversation)\n", stderr);
      continue;
    }
    if (line->front() == '/') {
      std::fprintf(stderr, "unknown command %s; there are /reset and /quit\n", line->c_str());
      continue;
    }
    const Status status = conversation.Ask(*line);
    // A request that is at fault (too long, say) does not end the conversation.
    if (!status.ok() && KindOf(status) != ErrorKind::kRequest) return status;
    if (!status.ok()) std::fprintf(stderr, "lockstep: %s\n", MessageOf(status).c_str());
  }
}

Status ChatOnRankZero(const Options& options, Session& session, const ModelText& text) {
  if (!text.chat_warning.empty()) log::Warning("%s", text.chat_warning);
  LOCKSTEP_ASSIGN_OR_RETURN(const ChatFamily family, text.RequireChatFamily());
  LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<GroupExecutor> executor, MakeExecutor(session));
  const std::unique_ptr<Engine> engine = MakeEngine(session, text, executor.get());
  const Status status = Converse(options, text, family, *engine);
  const StatusOr<std::vector<uint64_t>> digests =
      engine->Stop(status.ok() ? ErrorKind{0} : KindOf(status));
  LOCKSTEP_RETURN_IF_ERROR(status);
  return digests.status();
}

}  // namespace

Status ChatCommand(const Options& options) {
  LOCKSTEP_ASSIGN_OR_RETURN(const TextSession opened, OpenTextSession(options));
  const InterruptScope scope;
  Session& session = *opened.session;
  return session.Close(session.rank() == 0 ? ChatOnRankZero(options, session, *opened.text)
                                           : WorkForRankZero(session));
}

}  // namespace lockstep
