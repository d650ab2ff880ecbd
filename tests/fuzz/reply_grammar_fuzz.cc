// Hostile JSON schemas, for content and for tools. Seeds: tests/fuzz/seeds/reply_grammar.
#include "tests/fuzz/reply_grammar_fuzz_body.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  (void)lockstep::FuzzReplyGrammar({reinterpret_cast<const char*>(data), size});
  return 0;
}
