// Shows an answer as it streams: reasoning dim on a terminal, left out of a pipe.
#pragma once

#include "runtime/text/reply_parser.h"

namespace lockstep {

class AnswerPrinter {
 public:
  // `silent`: shows nothing (with --json).
  explicit AnswerPrinter(bool silent);
  void Show(const ReplyEvent& event);
  // Ends the line and the dim colour.
  void End();

 private:
  bool silent_;
  bool terminal_ = false;
  bool dim_ = false;
  bool ends_line_ = true;
};

}  // namespace lockstep
