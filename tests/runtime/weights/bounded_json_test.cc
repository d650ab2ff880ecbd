#include "runtime/weights/bounded_json.h"

#include <gtest/gtest.h>

#include <string>

namespace lockstep {
namespace {

std::string Repeated(const std::string& text, size_t times) {
  std::string all;
  for (size_t i = 0; i < times; ++i) all += text;
  return all;
}

TEST(BoundedJson, IsWhatTheParserMakesOfIt) {
  const std::string text = R"({"a": [1, 2.5, "x", null, true, {"b": []}], "c": {"d": -7}})";
  EXPECT_EQ(ParseBoundedJson(text), nlohmann::json::parse(text));
  EXPECT_EQ(ParseBoundedJson("3"), 3);
  for (const char* wrong : {"", "{", "[1,]", "{} {}", "\xff"}) {
    EXPECT_TRUE(ParseBoundedJson(wrong).is_discarded()) << wrong;
  }
}

TEST(BoundedJson, DepthIsBounded) {
  const auto nested = [](size_t depth) { return Repeated("[", depth) + Repeated("]", depth); };
  EXPECT_FALSE(ParseBoundedJson(nested(3), 3).is_discarded());
  EXPECT_TRUE(ParseBoundedJson(nested(5), 3).is_discarded());
  const std::string objects = Repeated("{\"a\":", 5) + "0" + Repeated("}", 5);
  EXPECT_TRUE(ParseBoundedJson(objects, 3).is_discarded());
  EXPECT_FALSE(ParseBoundedJson(objects, 6).is_discarded());
  EXPECT_TRUE(ParseBoundedJson(Repeated("[", size_t{16} << 20)).is_discarded());
}

TEST(BoundedJson, ValuesAreCounted) {
  const auto list = [](size_t count) { return "[0" + Repeated(",0", count - 1) + "]"; };
  EXPECT_FALSE(ParseBoundedJson(list(9), 4, 10).is_discarded());
  EXPECT_TRUE(ParseBoundedJson(list(10), 4, 10).is_discarded());
  EXPECT_TRUE(ParseBoundedJson("[" + Repeated("[],", 20) + "0]", 4, 10).is_discarded());
  // Keys count as well.
  EXPECT_TRUE(ParseBoundedJson(R"({"a":1,"b":2,"c":3,"d":4,"e":5})", 4, 10).is_discarded());
  EXPECT_TRUE(ParseBoundedJson(list(kMostJsonValues)).is_discarded());
}

}  // namespace
}  // namespace lockstep
