#include "launcher/commands/printer.h"

#include <unistd.h>

#include <cstdio>
#include <string>

#include "collectives/bootstrap.h"

namespace lockstep {
namespace {

constexpr char kDim[] = "\033[2m";
constexpr char kNormal[] = "\033[0m";

}  // namespace

AnswerPrinter::AnswerPrinter(bool silent) : silent_(silent) {
  // mpirun gives its ranks a pseudo-terminal, whatever its own output is.
  int rank = 0, size = 1, local_rank = 0, local_size = 1;
  terminal_ = isatty(STDOUT_FILENO) == 1 && !DetectMpirun(&rank, &size, &local_rank, &local_size);
}

void AnswerPrinter::Show(const ReplyEvent& event) {
  const bool dim = event.kind == ReplyEvent::Kind::kReasoning;
  if (silent_ || (dim && !terminal_)) return;
  std::string text = event.text;
  if (event.kind == ReplyEvent::Kind::kToolCall) {
    text = (ends_line_ ? "[tool call] " : "\n[tool call] ") + event.name + " " +
           event.arguments.Dump() + "\n";
  }
  if (text.empty()) return;
  if (dim != dim_) std::fputs(dim ? kDim : ends_line_ ? kNormal : "\033[0m\n", stdout);
  dim_ = dim;
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
  ends_line_ = text.back() == '\n';
}

void AnswerPrinter::End() {
  if (silent_) return;
  if (dim_) std::fputs(kNormal, stdout);
  dim_ = false;
  if (!ends_line_) std::fputc('\n', stdout);
  ends_line_ = true;
  std::fflush(stdout);
}

}  // namespace lockstep
