#include "runtime/grammar/schema_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>

namespace lockstep {
namespace {

using ::testing::HasSubstr;

Status CheckText(const std::string& schema) {
  return CheckSchema(ParseJson(schema).value(), "schema");
}

TEST(CheckSchema, TakesWhatIsKept) {
  for (const char* schema :
       {"true", "{}", R"({"type": "object"})", R"({"properties": {"a": {"type": "null"}}})",
        R"({"type": ["string", "null"], "maxLength": 5, "title": "T", "default": null})",
        R"({"type": "object", "properties": {"a": {"type": "integer", "minimum": 0}},
            "required": ["a"], "additionalProperties": {"type": "boolean"}})",
        R"({"type": "array", "items": {"enum": [1, "a"]}, "minItems": 1, "maxItems": 3})",
        R"({"type": "string", "enum": ["a"]})", R"({"allOf": [{"$ref": "#"}]})",
        R"({"$defs": {"n": {"type": "number"}}, "anyOf": [{"$ref": "#/$defs/n"}, {"const": 1}]})",
        R"({"oneOf": [{"type": "integer"}, {"type": "string"}]})",
        R"({"oneOf": [{"type": "object", "properties": {"k": {"const": 1}}, "required": ["k"]},
                      {"type": "object", "properties": {"k": {"const": 2}}, "required": ["k"]}]})",
        R"({"type": "string", "pattern": "^[a-z]{1,8}(-[0-9]{2})?$"})",
        R"({"type": "string", "format": "date-time"})"}) {
    EXPECT_TRUE(CheckText(schema).ok()) << schema << ": " << CheckText(schema);
  }
}

TEST(CheckSchema, NamesWhatIsNotKept) {
  const std::pair<const char*, const char*> cases[] = {
      {"3", "schema is an integer"},
      {"false", "that something fits"},
      {R"({"not": {}})", "'not' is not kept"},
      {R"({"minLength": 3})", "'minLength' is not kept without a type"},
      {R"({"type": "integer", "maxLength": 3})", "'maxLength' is not kept for this type"},
      {R"({"type": "text"})", "schema.type"},
      {R"({"type": "array", "uniqueItems": true})", "'uniqueItems'"},
      {R"({"type": "object", "properties": {"a": {"if": {}}}})", "schema.properties.a: 'if'"},
      {R"({"type": "object", "required": ["a"]})", "schema.required has \"a\""},
      {R"({"type": "object", "patternProperties": {}})", "'patternProperties'"},
      {R"({"anyOf": [{"type": "null"}], "type": "object"})", "'type' is not kept beside anyOf"},
      {R"({"allOf": [{}, {}]})", "allOf is kept with one schema only"},
      {R"({"oneOf": [{"type": "integer"}, {"type": "number"}]})", "exclude each other"},
      {R"({"$ref": "http://example.com/schema"})", "$ref names no schema"},
      {R"({"$ref": "#/$defs/a"})", "$ref names no schema"},
      {R"({"type": "string", "enum": [1]})", "which its type excludes"},
      {R"({"type": "string", "pattern": "a", "maxLength": 3})", "only one is kept"},
      {R"({"type": "string", "pattern": "(a+)+"})", "a repetition of a repetition"},
      {R"({"type": "string", "pattern": "(a{1,50}){1,50}"})", "a repetition of a repetition"},
      {R"({"type": "string", "pattern": "a{101}"})", "use minLength and maxLength"},
      {R"({"type": "string", "pattern": "a{99999999999999999999}"})", "use minLength"},
      {R"({"type": "string", "pattern": "(?=a)b"})", "looks around"},
      {R"({"type": "string", "pattern": "(a)\\1"})", "back reference"},
      {R"({"type": "string", "maxLength": 100001})", "0 .. 100000"},
      {R"({"type": "array", "minItems": -1})", "0 .. 10000"},
      {R"({"type": "number", "multipleOf": 0.5})", "multipleOf is kept for integers"},
      {R"({"type": "integer", "minimum": 1e300})", "2^53"},
  };
  for (const auto& [schema, words] : cases) {
    const Status status = CheckText(schema);
    EXPECT_EQ(KindOf(status), ErrorKind::kRequest) << schema;
    EXPECT_THAT(MessageOf(status), HasSubstr(words)) << schema;
  }
}

// References may name one schema in numberless ways. Each of these ended, or did not, by the size
// of what they name: a test that hangs is how it fails.
TEST(CheckSchema, TakesEachSchemaOnceHoweverOftenItIsNamed) {
  const auto repeated = [](const std::string& what, int times) {
    std::string list = what;
    for (int i = 1; i < times; ++i) list += ", " + what;
    return "[" + list + "]";
  };
  const std::string self = R"({"$ref": "#/$defs/a"})";
  EXPECT_THAT(MessageOf(CheckText(R"({"$defs": {"a": {"anyOf": )" + repeated(self, 64) +
                                  R"(}}, "$ref": "#/$defs/a"})")),
              HasSubstr("begin alike"));
  EXPECT_THAT(MessageOf(CheckText(R"({"$defs": {"a": {"oneOf": )" + repeated(self, 64) +
                                  R"(}}, "$ref": "#/$defs/a"})")),
              HasSubstr("oneOf"));
  // Thirty definitions, each of which names the next one twice; at the end two types.
  std::string chain;
  for (int i = 0; i < 30; ++i)
    chain +=
        absl::StrFormat(R"("d%d": {"anyOf": [{"$ref": "#/$defs/d%d"}, {"$ref": "#/$defs/d%d"}]}, )",
                        i, i + 1, i + 1);
  chain += R"("d30": {"type": ["string", "null"]})";
  EXPECT_THAT(MessageOf(CheckText(R"({"$defs": {)" + chain + R"(}, "$ref": "#/$defs/d0"})")),
              HasSubstr("begin alike"));
  // Objects that are told apart by one of many names.
  std::string names = repeated("\"k\"", 9000);
  EXPECT_THAT(MessageOf(CheckText(R"({"type": "object", "properties": {"k": {}}, "required": )" +
                                  names + "}")),
              HasSubstr("at most 128"));
}

TEST(CheckSchema, BoundsWhatItCosts) {
  std::string deep = "{}", wide = R"({"type": "object", "properties": {)", list = R"({"enum": [)",
              alike = R"({"anyOf": [)";
  for (int i = 0; i < 30; ++i) deep = R"({"type": "array", "items": )" + deep + "}";
  for (int i = 0; i < 200; ++i)
    wide += (i > 0 ? ", \"p" : "\"p") + std::to_string(i) + "\": {\"type\": \"null\"}";
  for (int i = 0; i < 2000; ++i) list += (i > 0 ? ", " : "") + std::to_string(i);
  for (int i = 0; i < 40; ++i) alike += (i > 0 ? ", " : "") + std::string(R"({"type": "string"})");
  EXPECT_THAT(MessageOf(CheckText(deep)), HasSubstr("nested more than"));
  EXPECT_THAT(MessageOf(CheckText(wide + "}}")), HasSubstr("at most 128"));
  EXPECT_THAT(MessageOf(CheckText(list + "]}")), HasSubstr("more than 1000 values"));
  EXPECT_THAT(MessageOf(CheckText(alike + "]}")), HasSubstr("begin alike"));
  EXPECT_THAT(MessageOf(CheckText("{\"description\": \"" + std::string(70'000, 'x') + "\"}")),
              HasSubstr("64 KiB"));
}

}  // namespace
}  // namespace lockstep
