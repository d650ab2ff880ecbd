// The JSON-lines commands over any streams: one output line per input line, in order, flushed after
// each.
#pragma once

#include <iosfwd>

#include "runtime/base/status.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"

namespace lockstep {

// A line that cannot be answered (an empty one too) gives {"error": ...} on its line and the others
// go on; after the last line that is a UsageError which counts them. Output is valid UTF-8, with
// characters beyond ASCII as they are.

// {"text"} to {"ids"}.
Status TokenizeLines(const Tokenizer& tokenizer, std::istream& in, std::ostream& out);
// {"ids", "skip_special", "stream"} to {"text"}; with "stream" true to {"pieces"}: the text that
// becomes final with each id (null: nothing yet) and, if text is still pending after the last id,
// "rest" with it.
Status DetokenizeLines(const Tokenizer& tokenizer, std::istream& in, std::ostream& out);
// A chat request (ChatRequestFromJson) to {"text"}.
Status RenderLines(ChatFamily family, std::istream& in, std::ostream& out);

}  // namespace lockstep
