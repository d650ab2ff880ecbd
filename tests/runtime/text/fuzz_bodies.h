// What the fuzz targets of tests/fuzz run on one input; tests replay seeds through the same
// functions. Each checks what must hold for any bytes and stops the program where it does not.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/check.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/reply_parser.h"
#include "runtime/text/streaming_decoder.h"
#include "runtime/text/unicode.h"
#include "tests/runtime/text/small_tokenizer.h"

namespace lockstep {

// Any bytes as tokenizer.json: an error of the right kind, or a tokenizer that loses no text.
inline void FuzzTokenizerJson(std::string_view data) {
  const auto tokenizer = Tokenizer::FromJson(data, "fuzz.json");
  if (!tokenizer.ok()) {
    LOCKSTEP_CHECK(KindOf(tokenizer.status()) == ErrorKind::kModel);
    return;
  }
  for (int32_t id = 0; id < (*tokenizer)->vocab_size(); ++id)
    (*tokenizer)->Decode(std::vector<int32_t>{id}, true);
  (*tokenizer)->Encode("The <|user|> 日本 \n\n 12345 </think>\xFF");
}

// Two bytes an id: pieces joined equal the whole, and every piece is valid UTF-8. The same bytes as
// text survive encoding and decoding.
inline void FuzzDetokenize(std::string_view data) {
  static const Tokenizer& tokenizer =
      *LoadFrom(SmallTokenizerJson({{"t", "h"}, {"th", "e"}, {"Ġ", "the"}})).value().release();
  std::vector<int32_t> ids;
  for (size_t i = 0; i + 1 < data.size(); i += 2) {
    ids.push_back((static_cast<unsigned char>(data[i]) & 1) * 256 +
                  static_cast<unsigned char>(data[i + 1]));
  }
  for (bool skip_special : {false, true}) {
    StreamingDecoder decoder(tokenizer, skip_special);
    std::string joined;
    for (int32_t id : ids) {
      const std::optional<std::string> piece = decoder.Push(id);
      if (!piece) continue;
      LOCKSTEP_CHECK(!piece->empty() && IsValidUtf8(*piece));
      joined += *piece;
    }
    joined += decoder.Finish();
    LOCKSTEP_CHECK(joined == tokenizer.Decode(ids, skip_special));
  }
  LOCKSTEP_CHECK(tokenizer.Decode(tokenizer.Encode(data), false) == ReplaceInvalidUtf8(data));
  LOCKSTEP_CHECK(tokenizer.Decode(tokenizer.EncodePlain(data), false) == ReplaceInvalidUtf8(data));
}

// Any bytes as a render request: a request error, or a prompt that begins as all do.
inline void FuzzChatTemplate(std::string_view data) {
  const auto value = ParseJson(data);
  if (!value.ok()) return;
  const auto request = ChatRequestFromJson(*value);
  if (!request.ok()) return;
  for (ChatFamily family : {ChatFamily::kGlm46, ChatFamily::kGlm47}) {
    const auto text = RenderChat(family, *request);
    if (text.ok()) {
      LOCKSTEP_CHECK(text->starts_with("[gMASK]<sop>") && IsValidUtf8(*text));
    } else {
      LOCKSTEP_CHECK(KindOf(text.status()) == ErrorKind::kRequest);
    }
  }
}

// The first byte chooses the start and where the rest is cut in two: the cut must not matter.
inline void FuzzReplyParser(std::string_view data) {
  if (data.empty()) return;
  const unsigned char choice = static_cast<unsigned char>(data[0]);
  data.remove_prefix(1);
  const auto start = static_cast<ReplyStart>(choice % 3);
  const ParsedReply whole = ParseReply(data, start, {});
  ReplyParser parser(start, {});
  const size_t cut = data.size() * (choice / 3) / 86;
  std::string reasoning, content;
  size_t calls = 0;
  std::vector<ReplyEvent> events = parser.Push(data.substr(0, cut));
  for (const auto& more : {parser.Push(data.substr(cut)), parser.Finish()}) {
    events.insert(events.end(), more.begin(), more.end());
  }
  for (const ReplyEvent& event : events) {
    if (event.kind == ReplyEvent::Kind::kReasoning) reasoning += event.text;
    if (event.kind == ReplyEvent::Kind::kContent) content += event.text;
    if (event.kind == ReplyEvent::Kind::kToolCall) ++calls;
  }
  LOCKSTEP_CHECK(reasoning == whole.reasoning && content == whole.content &&
                 calls == whole.tool_calls.size());
}

}  // namespace lockstep
