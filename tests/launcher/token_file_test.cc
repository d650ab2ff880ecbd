#include "launcher/token_file.h"

#include <gtest/gtest.h>

#include <string>

namespace lockstep {
namespace {

void ExpectRefused(const std::string& text, const std::string& part) {
  const auto lists = ParseTokenLists(text, "ids.json");
  ASSERT_FALSE(lists.ok()) << text;
  EXPECT_EQ(KindOf(lists.status()), ErrorKind::kUsage);
  EXPECT_NE(MessageOf(lists.status()).find("ids.json"), std::string::npos);
  EXPECT_NE(MessageOf(lists.status()).find(part), std::string::npos) << lists.status();
}

TEST(TokenFile, ReadsLists) {
  const auto lists = ParseTokenLists("[[1, 2], [3]]", "ids.json");
  ASSERT_TRUE(lists.ok()) << lists.status();
  EXPECT_EQ(*lists, (std::vector<std::vector<int32_t>>{{1, 2}, {3}}));
}

TEST(TokenFile, RefusesWhatIsNoListOfTokenLists) {
  ExpectRefused("", "not JSON");
  ExpectRefused("[[1,]]", "not JSON");
  ExpectRefused("{}", "no token lists");
  ExpectRefused("[]", "no token lists");
  ExpectRefused("[1, 2]", "entry 0 is not a list");
  ExpectRefused("[[1], []]", "list 1 is empty");
  ExpectRefused("[[1.0]]", "no token id");
  ExpectRefused("[[\"1\"]]", "no token id");
  ExpectRefused("[[null]]", "no token id");
  ExpectRefused("[[-1]]", "no token id");
  ExpectRefused("[[2147483648]]", "no token id");
  ExpectRefused("[[18446744073709551615]]", "no token id");
  ExpectRefused("[[1e400]]", "not JSON");
}

TEST(TokenFile, ComparesWithTheModel) {
  ModelConfig config;
  config.vocab_size = 10;
  config.max_position_embeddings = 4;
  EXPECT_TRUE(CheckTokenLists({{9, 0, 1, 2}}, "ids.json", config, 0).ok());
  EXPECT_FALSE(CheckTokenLists({{10}}, "ids.json", config, 0).ok());
  EXPECT_FALSE(CheckTokenLists({{1, 1, 1, 1, 1}}, "ids.json", config, 0).ok());
  EXPECT_FALSE(CheckTokenLists({{1, 1, 1}}, "ids.json", config, 2).ok());
  EXPECT_FALSE(CheckTokenLists({{1}}, "ids.json", config, 5).ok()) << "more than the model has";
}

TEST(TokenFile, AMissingFileIsNamed) {
  const auto lists = ReadTokenLists("/nowhere/ids.json");
  ASSERT_FALSE(lists.ok());
  EXPECT_NE(MessageOf(lists.status()).find("/nowhere/ids.json"), std::string::npos);
}

}  // namespace
}  // namespace lockstep
