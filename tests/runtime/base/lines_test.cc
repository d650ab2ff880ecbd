#include "runtime/base/lines.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace lockstep {
namespace {

using Found = std::vector<std::pair<int64_t, std::string>>;

Found AllOf(std::string_view text) {
  Found found;
  Lines lines(text);
  for (std::string_view line; lines.Next(&line);) found.emplace_back(lines.number(), line);
  return found;
}

TEST(Lines, BlankOnesAreCountedAndPassedOver) {
  EXPECT_EQ(AllOf("a\n\n \t\r\n b \nc"), (Found{{1, "a"}, {4, " b "}, {5, "c"}}));
  EXPECT_EQ(AllOf("a\n"), (Found{{1, "a"}}));
  EXPECT_EQ(AllOf(""), Found{});
  EXPECT_EQ(AllOf("\n\n"), Found{});
}

}  // namespace
}  // namespace lockstep
