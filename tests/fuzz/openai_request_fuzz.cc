// Hostile bodies of /v1/chat/completions, /v1/completions, /v1/messages and /v1/responses: an error
// of the right kind, or requests within all bounds. Seeds: tests/fuzz/seeds/openai_request.
#include <cstddef>
#include <cstdint>

#include "runtime/base/check.h"
#include "runtime/serve/anthropic_request.h"
#include "runtime/serve/openai_request.h"
#include "runtime/serve/responses_request.h"
#include "tests/runtime/text/small_tokenizer.h"

namespace lockstep {
namespace {

constexpr int64_t kContext = 4096;

const ModelText& Text() {
  static const ModelText& text = [] {
    auto* made = new ModelText;
    made->tokenizer = LoadFrom(SmallTokenizerJson({{"t", "h"}, {"th", "e"}, {"Ġ", "the"}})).value();
    made->chat_family = ChatFamily::kGlm47;
    return std::ref(*made);
  }();
  return text;
}

void Check(const StatusOr<OpenAiRequest>& request) {
  if (!request.ok()) {
    LOCKSTEP_CHECK(KindOf(request.status()) == ErrorKind::kRequest);
    return;
  }
  LOCKSTEP_CHECK(!request->requests.empty() &&
                 static_cast<int64_t>(request->requests.size()) <= kMaxChoices);
  for (const Request& one : request->requests) {
    const auto tokens = static_cast<int64_t>(one.prompt.size());
    LOCKSTEP_CHECK(tokens > 0 && tokens < kContext);
    LOCKSTEP_CHECK(one.stop.max_tokens >= 0);
    (void)ValidateSamplingParams(one.sampling, 1000);
    (void)ValidateStopParams(one.stop, 1000);
  }
}

}  // namespace
}  // namespace lockstep

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lockstep;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const StatusOr<JsonValue> body = ParseJson(text, kStrangersJson);
  if (!body.ok() || !body->is_object()) return 0;
  Check(ParseChatCompletion(*body, Text(), kContext));
  Check(ParseCompletion(*body, Text(), kContext));
  for (const auto to_chat : {ChatFromMessages, ChatFromResponses}) {
    std::vector<std::string> notes;
    const StatusOr<JsonValue> chat = to_chat(*body, &notes);
    Check(chat.ok() ? ParseChatCompletion(*chat, Text(), kContext) : chat.status());
  }
  return 0;
}
