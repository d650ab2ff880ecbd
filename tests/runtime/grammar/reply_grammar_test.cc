// What tools may ask of a grammar: what cannot be kept, or costs too much, is refused by name.
#include "runtime/grammar/reply_grammar.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "runtime/grammar/constraints.h"

namespace lockstep {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

StatusOr<std::string> Grammar(const std::string& parameters, bool strict, int tools = 1) {
  JsonValue function = JsonValue::MakeObject(
      {{"name", JsonValue::String("f")}, {"strict", JsonValue::Bool(strict)}});
  function.Set("parameters", ParseJson(parameters).value());
  ReplyRules rules;
  rules.calls = ReplyRules::Calls::kRequired;
  rules.tools = JsonValue::MakeArray();
  for (int i = 0; i < tools; ++i)
    rules.tools.AsArray().push_back(JsonValue::MakeObject({{"function", function}}));
  return MakeReplyGrammar(rules, ReplyStart::kContent, ChatFamily::kGlm47);
}

TEST(ReplyGrammar, StrictToolsAreRefusedByNameWhereOthersAreFree) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"$defs": {"a": {"type": "object"}}, "$ref": "#/$defs/a"})", "'$ref'"},
      {R"({"anyOf": [{"type": "object"}, {"type": "null"}]})", "'anyOf'"},
      {R"({"oneOf": [{"type": "object"}]})", "'oneOf'"},
      {R"({"allOf": [{"type": "object"}]})", "'allOf'"},
      {R"({"type": "object", "additionalProperties": true})", "'additionalProperties'"},
      {R"({"type": "object", "properties": {}, "additionalProperties": {"type": "null"}})",
       "'additionalProperties'"},
  };
  for (const auto& [parameters, words] : cases) {
    EXPECT_THAT(MessageOf(Grammar(parameters, true).status()), HasSubstr(words)) << parameters;
    // Any names, with any text.
    const StatusOr<std::string> free = Grammar(parameters, false);
    ASSERT_TRUE(free.ok()) << free.status();
    EXPECT_THAT(*free, HasSubstr("any_text")) << parameters;
  }
  for (const char* none :
       {R"({"type": "object"})", R"({"type": "object", "properties": {}})",
        R"({"type": "object", "properties": {}, "additionalProperties": false})"}) {
    const StatusOr<std::string> grammar = Grammar(none, true);
    ASSERT_TRUE(grammar.ok()) << grammar.status();
    EXPECT_THAT(*grammar, Not(HasSubstr("arg_key"))) << none;
  }
}

TEST(ReplyGrammar, TheRootOfParametersIsNoSchemaOfAnArgument) {
  for (const char* parameters :
       {R"({"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, true]}}})",
        R"({"type": "object", "$defs": {"a": {"$ref": "#"}},
            "properties": {"next": {"type": "array", "items": {"$ref": "#/$defs/a"}}}})"}) {
    EXPECT_THAT(MessageOf(Grammar(parameters, true).status()),
                HasSubstr("properties.next: a $ref"));
    const StatusOr<std::string> free = Grammar(parameters, false);
    ASSERT_TRUE(free.ok()) << free.status();
    EXPECT_THAT(*free, HasSubstr("any_text"));
    EXPECT_THAT(*free, Not(HasSubstr("json_schema")));
  }
}

TEST(ReplyGrammar, BoundsWhatToolsCostWhetherStrictOrNot) {
  std::string definitions, properties, required;
  for (int i = 0; i < 800; ++i)
    definitions += absl::StrFormat(R"(%s"d%d": {"description": "%s", "type": "null"})",
                                   i > 0 ? ", " : "", i, std::string(30, 'x'));
  const auto parameters = [&](int count) {
    std::string text = R"({"$defs": {)" + definitions + R"(}, "type": "object", "properties": {)";
    for (int i = 0; i < count; ++i)
      text += absl::StrFormat(R"(%s"p%d": {"$ref": "#/$defs/d1"})", i > 0 ? ", " : "", i);
    return text + "}}";
  };
  for (const bool strict : {false, true}) {
    EXPECT_TRUE(Grammar(parameters(3), strict).ok()) << Grammar(parameters(3), strict).status();
    EXPECT_THAT(MessageOf(Grammar(parameters(100), strict).status()),
                HasSubstr("more than 256 KiB in all"));
  }
  EXPECT_THAT(MessageOf(Grammar(parameters(1000), false).status()),
              HasSubstr("properties has more than 128"));
  EXPECT_THAT(MessageOf(Grammar("{}", false, 10'000).status()), HasSubstr("256 KiB in all"));
}

}  // namespace
}  // namespace lockstep
