#include "runtime/text/json_value.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "runtime/text/python_literal.h"
#include "runtime/text/unicode.h"

namespace lockstep {
namespace {

JsonValue Parse(std::string_view text) {
  auto value = ParseJson(text);
  EXPECT_TRUE(value.ok()) << text << value.status();
  return value.ok() ? *std::move(value) : JsonValue();
}

TEST(JsonValueTest, DumpsAsPythonDoes) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"b":1,"a":[ ],"c":{ }})", R"({"b": 1, "a": [], "c": {}})"},
      {R"([1.0,1e16,1e15,1e-4,1e-5,-0.0,0.1,5e-324,1.7976931348623157e308])",
       "[1.0, 1e+16, 1000000000000000.0, 0.0001, 1e-05, -0.0, 0.1, 5e-324, "
       "1.7976931348623157e+308]"},
      {"[123456789012345680.0,123.456,1e22,1.5e300]",
       "[1.2345678901234568e+17, 123.456, 1e+22, 1.5e+300]"},
      {"[12345678901234567890,-123456789012345678901234567890,-0,18446744073709551615]",
       "[12345678901234567890, -123456789012345678901234567890, 0, 18446744073709551615]"},
      {R"("\u0001\u001f\b\f\n\r\t\"\\/é\u2028\u007f")",
       "\"\\u0001\\u001f\\b\\f\\n\\r\\t\\\"\\\\/é\u2028\x7f\""},
      {R"({"a":1,"b":2,"a":3})", R"({"a": 3, "b": 2})"},
      {"null", "null"},
      {"[true,false]", "[true, false]"},
  };
  for (const auto& [text, wanted] : cases) EXPECT_EQ(Parse(text).Dump(), wanted);
}

TEST(JsonValueTest, PrintsAsPythonStr) {
  const std::pair<const char*, const char*> cases[] = {
      {R"("it's")", "it's"},
      {R"(["it's","\"","both'\"","\n\t\r\\","\u0000\u007f\u00ad\u200b\ufeff\u2028é日😀\u00a0"])",
       R"(["it's", '"', 'both\'"', '\n\t\r\\', '\x00\x7f\xad\u200b\ufeff\u2028é日😀\xa0'])"},
      {R"({"a":null,"b":[true,1.5,2]})", "{'a': None, 'b': [True, 1.5, 2]}"},
      {R"(["\udb40\udc01","\u0378"])", R"(['\U000e0001', '\u0378'])"},
      {"false", "False"},
      {"1e100", "1e+100"},
  };
  for (const auto& [text, wanted] : cases) EXPECT_EQ(Parse(text).PythonStr(), wanted);
  EXPECT_EQ(JsonValue::Float(std::numeric_limits<double>::infinity()).PythonStr(), "inf");
  EXPECT_EQ(JsonValue::Float(-std::numeric_limits<double>::infinity()).Dump(), "-Infinity");
  EXPECT_EQ(JsonValue::Float(std::nan("")).Dump(), "NaN");
}

TEST(JsonValueTest, IsTrueWhenPythonSaysSo) {
  for (const char* text : {"null", "false", "0", "-0", "0.0", "\"\"", "[]", "{}"})
    EXPECT_FALSE(Parse(text).Truthy());
  for (const char* text : {"true", "1", "-1", "0.5", "\"0\"", "[0]", "{\"a\":0}"})
    EXPECT_TRUE(Parse(text).Truthy());
}

TEST(JsonValueTest, IntegersConvertOnlyWhereTheyFit) {
  EXPECT_EQ(Parse("9223372036854775807").ToInt64(), INT64_MAX);
  EXPECT_EQ(Parse("-9223372036854775808").ToInt64(), INT64_MIN);
  EXPECT_EQ(Parse("9223372036854775808").ToInt64(), std::nullopt);
  EXPECT_EQ(Parse("1.0").ToInt64(), std::nullopt);
  EXPECT_EQ(Parse("3").ToDouble(), 3.0);
  EXPECT_EQ(JsonValue::BigInt("-007").Dump(), "-7");
}

TEST(JsonValueTest, EqualityIgnoresOrderOfKeysOnly) {
  EXPECT_EQ(Parse(R"({"a":1,"b":[1,2]})"), Parse(R"({"b":[1,2],"a":1})"));
  EXPECT_FALSE(Parse("[1,2]") == Parse("[2,1]"));
  EXPECT_FALSE(Parse("1") == Parse("1.0"));
  EXPECT_FALSE(Parse(R"({"a":1})") == Parse(R"({"a":1,"b":2})"));
}

TEST(ParseJsonTest, RefusesWhatIsNotJson) {
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("[1,]"), std::string("1 2"),
        std::string("\"\xFF\""), std::string("\"\\ud800\""), std::string("nan"), std::string("'a'"),
        std::string("1e999"), std::string("\"\n\"")}) {
    const auto value = ParseJson(text);
    ASSERT_FALSE(value.ok()) << text;
    EXPECT_EQ(KindOf(value.status()), ErrorKind::kRequest);
    EXPECT_THAT(MessageOf(value.status()), testing::StartsWith("JSON: "));
  }
}

TEST(ParseJsonTest, LimitsNestingAndDuplicates) {
  JsonLimits limits;
  limits.nesting = 3;
  EXPECT_TRUE(ParseJson("[[[1]]]", limits).ok());
  EXPECT_FALSE(ParseJson("[[[[1]]]]", limits).ok());
  EXPECT_FALSE(ParseJson(std::string(1 << 20, '[')).ok());
  limits.values = 5;
  EXPECT_TRUE(ParseJson(R"([1, {"a": "x"}, null])", limits).ok());
  EXPECT_THAT(MessageOf(ParseJson(R"([1, {"a": "x"}, null, 2])", limits).status()),
              testing::HasSubstr("more than 5 values"));
  limits.refuse_duplicate_keys = true;
  EXPECT_THAT(MessageOf(ParseJson(R"({"a":1,"a":1})", limits).status()),
              testing::HasSubstr("\"a\""));
}

TEST(ParseJsonTest, ManyDuplicateKeysAreMergedInOrder) {
  std::string text = "{";
  for (int i = 0; i < 50000; ++i)
    text += "\"k" + std::to_string(i % 25000) + "\":" + std::to_string(i) + ",";
  text.back() = '}';
  const JsonValue value = Parse(text);
  ASSERT_EQ(value.AsObject().size(), 25000u);
  EXPECT_EQ(value.AsObject()[7].key, "k7");
  EXPECT_EQ(value.AsObject()[7].value.ToInt64(), 25007);
}

TEST(PythonLiteralTest, ReadsLiterals) {
  const std::pair<const char*, const char*> cases[] = {
      {"{'a': True, 'b': None, }", R"({"a": true, "b": null})"},
      {"(1, 'x')", R"([1, "x"])"},
      {"('x')", R"("x")"},
      {"()", "[]"},
      {"[1, -2, +3, 1_000, 1., .5, -1e-3]", "[1, -2, 3, 1000, 1.0, 0.5, -0.001]"},
      {"{1: 'a', None: 2, True: 3, 1.5: 4}", R"({"1": "a", "null": 2, "true": 3, "1.5": 4})"},
      {R"('it\'s\n\x41\u00e9\101\q')", R"("it's\nAéA\\q")"},
      {R"(r'\n' "b")", R"("\\nb")"},
      {"'''a\n'b'''", R"("a\n'b")"},
      {" False ", "false"},
      {"00", "0"},
  };
  for (const auto& [text, wanted] : cases) {
    const auto value = ParsePythonLiteral(text);
    ASSERT_TRUE(value.has_value()) << text;
    EXPECT_EQ(value->Dump(), wanted);
  }
}

TEST(PythonLiteralTest, RefusesEverythingElse) {
  for (const std::string& text :
       {std::string("abc"),      std::string(""),       std::string("{1, 2}"),
        std::string("b'x'"),     std::string("1j"),     std::string("[1"),
        std::string("'a"),       std::string("[1 2]"),  std::string("{'a' 1}"),
        std::string("{[1]: 2}"), std::string("f(x)"),   std::string("1 +"),
        std::string("012"),      std::string("'\\x4'"), std::string("'\\ud800'"),
        std::string("'a\nb'"),   std::string("1e"),     std::string("Nonesuch"),
        std::string("[,]"),      std::string("-"),      std::string(100000, '['),
        std::string(100000, '-')}) {
    EXPECT_FALSE(ParsePythonLiteral(text).has_value()) << text.substr(0, 20);
  }
}

TEST(UnicodeTest, EveryCodePointSurvivesAndNothingElseIsValid) {
  for (char32_t code = 0; code <= 0x10FFFF; ++code) {
    std::string text;
    AppendUtf8(code, &text);
    const bool surrogate = code >= 0xD800 && code < 0xE000;
    ASSERT_EQ(IsValidUtf8(text), !surrogate) << static_cast<uint32_t>(code);
    if (!surrogate) {
      ASSERT_EQ(DecodeUtf8(text, 0).code, code);
    }
  }
  for (const char* text : {"\x80", "\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xF0\x8F\xBF\xBF",
                           "\xF4\x90\x80\x80", "\xF5", "\xE6\x97"}) {
    EXPECT_FALSE(IsValidUtf8(text));
  }
}

TEST(UnicodeTest, IllFormedRunsBecomeOneReplacementEach) {
  const std::pair<const char*, const char*> cases[] = {
      {"a\xE6\x97z", "a\uFFFDz"},     {"\xE6\x97\xE6\x97\xA5", "\uFFFD日"},
      {"\xF0\x9F\x98", "\uFFFD"},     {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"},
      {"\xC0\xAF", "\uFFFD\uFFFD"},   {"\xF8\x88\x80\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD"},
      {"\xE0\x80z", "\uFFFD\uFFFDz"}, {"\xF4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"},
  };
  for (const auto& [text, wanted] : cases) EXPECT_EQ(ReplaceInvalidUtf8(text), wanted);
}

TEST(UnicodeTest, StripsWhatPythonStrips) {
  EXPECT_EQ(PythonStrip("\t\n\v\f\r "
                        "\x1c\x1d\x1e\x1f\u0085\u00a0\u1680\u2000\u200a\u2028\u2029\u202f\u205f"
                        "\u3000x y\u3000\n"),
            "x y");
  for (const char* kept : {"\u200b", "\u180e", "\ufeff", "\u2060", "\x1b"})
    EXPECT_EQ(PythonStrip(kept), kept);
  EXPECT_EQ(PythonStrip(" \u3000 "), "");
  EXPECT_EQ(PythonStrip(" \x80 "), "\x80");
  EXPECT_EQ(StripLeadingNewlines("\n\n a\n"), " a\n");
  EXPECT_EQ(StripTrailingNewlines("\na \n\n"), "\na ");
}

}  // namespace
}  // namespace lockstep
