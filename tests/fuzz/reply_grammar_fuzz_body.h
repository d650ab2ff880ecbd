// A stranger's schema, as content and as a tool's parameters: it is refused by name, or answers can
// follow it, within a time that no server notices.
#pragma once

#include <chrono>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/check.h"
#include "runtime/grammar/constraints.h"
#include "runtime/grammar/reply_grammar.h"
#include "tests/runtime/text/small_tokenizer.h"

namespace lockstep {

struct GrammarMaker {
  std::unique_ptr<Tokenizer> tokenizer;
  int32_t end = 0;
  std::unique_ptr<TokenConstraints> constraints;  // null: built without xgrammar
};

inline GrammarMaker& FuzzGrammars() {
  static GrammarMaker& maker = [&]() -> GrammarMaker& {
    auto* made = new GrammarMaker;
    made->tokenizer =
        LoadFrom(
            SmallTokenizerJson({{"a", "b"}, {"\"", ","}, {"}", "}"}, {"0", "0"}, {"Ġ", "\""}},
                               {"<|user|>", "<think>", "</think>", "<tool_call>", "</tool_call>",
                                "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"}))
            .value();
    made->end = made->tokenizer->IdOf("<|user|>").value();
    made->constraints = MakeTokenConstraints(*made->tokenizer, {made->end});
    return *made;
  }();
  return maker;
}

// Forty tokens, each the first allowed one behind a place that the bytes of the schema choose.
inline void FollowGrammar(GrammarMaker& maker, const std::string& grammar) {
  if (!maker.constraints->Check(grammar).ok()) return;
  const auto constraint = maker.constraints->Start(grammar);
  uint32_t place = static_cast<uint32_t>(grammar.size());
  for (int step = 0; step < 40; ++step) {
    const std::span<const uint32_t> allowed = constraint->Allowed();
    const int32_t count = maker.tokenizer->vocab_size();
    int32_t chosen = -1;
    for (int32_t i = 0; i < count && chosen < 0; ++i) {
      const auto id = static_cast<int32_t>((place + static_cast<uint32_t>(i)) % count);
      if ((allowed[id / 32] >> (id % 32) & 1) != 0) chosen = id;
    }
    LOCKSTEP_CHECK(chosen >= 0);
    if (chosen == maker.end) return;
    place = place * 1'664'525u + static_cast<uint32_t>(grammar[step % grammar.size()]) + 1;
    constraint->Append(chosen);
  }
}

// Whether the schema was kept as content.
inline bool FuzzReplyGrammar(std::string_view data) {
  GrammarMaker& maker = FuzzGrammars();
  const StatusOr<JsonValue> schema = ParseJson(data, kStrangersJson);
  if (!schema.ok() || schema->is_null() || maker.constraints == nullptr) return false;
  ReplyRules rules;
  rules.schema = *schema;
  const StatusOr<std::string> content =
      MakeReplyGrammar(rules, ReplyStart::kContent, ChatFamily::kGlm47);
  LOCKSTEP_CHECK(content.ok() || KindOf(content.status()) == ErrorKind::kRequest);
  if (content.ok()) FollowGrammar(maker, *content);

  rules.schema = JsonValue();
  JsonValue function = JsonValue::MakeObject(
      {{"name", JsonValue::String("f")}, {"strict", JsonValue::Bool(data.size() % 2 == 0)}});
  function.Set("parameters", *schema);
  rules.tools = JsonValue::MakeArray({JsonValue::MakeObject({{"function", std::move(function)}})});
  for (const ReplyRules::Calls calls : {ReplyRules::Calls::kAuto, ReplyRules::Calls::kRequired}) {
    rules.calls = calls;
    const StatusOr<std::string> call =
        MakeReplyGrammar(rules, ReplyStart::kContent, ChatFamily::kGlm46);
    LOCKSTEP_CHECK(call.ok() || KindOf(call.status()) == ErrorKind::kRequest);
    if (call.ok() && !call->empty()) FollowGrammar(maker, *call);
  }
  return content.ok();
}

}  // namespace lockstep
