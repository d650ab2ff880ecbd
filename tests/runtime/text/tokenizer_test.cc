#include "runtime/text/tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <random>
#include <thread>

#include "runtime/text/streaming_decoder.h"
#include "runtime/text/unicode.h"
#include "tests/runtime/text/text_test_support.h"
#include "tests/support/seed.h"

namespace lockstep {
namespace {

std::vector<int32_t> Ids(const TestJson& json) { return json.get<std::vector<int32_t>>(); }

class GoldenTokenizerTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    tokenizer_ = GoldenTokenizer(GetParam());
    ASSERT_NE(tokenizer_, nullptr);
    golden_ = ReadJson(std::string("tests/goldens/goldens/tokenizer_") + GetParam() + ".json");
    ASSERT_GT(golden_["encode"].size(), 400u);
    ASSERT_GT(golden_["decode_only"].size(), 50u);
  }
  void CheckDecoding(const TestJson& item) {
    const std::vector<int32_t> ids = Ids(item["ids"]);
    EXPECT_EQ(tokenizer_->Decode(ids, false), item["decoded"].get<std::string>());
    EXPECT_EQ(tokenizer_->Decode(ids, true), item["decoded_skip_special"].get<std::string>());
    StreamingDecoder stream(*tokenizer_, false), skipping(*tokenizer_, true);
    std::string joined, joined_skipping;
    for (size_t i = 0; i < ids.size(); ++i) {
      const std::optional<std::string> piece = stream.Push(ids[i]);
      const TestJson& wanted = item["stream"][i];
      EXPECT_EQ(piece.has_value(), !wanted.is_null()) << i;
      EXPECT_EQ(piece.value_or(""), wanted.is_string() ? wanted.get<std::string>() : "") << i;
      joined += piece.value_or("");
      joined_skipping += skipping.Push(ids[i]).value_or("");
    }
    EXPECT_EQ(joined + stream.Finish(), item["decoded"].get<std::string>());
    EXPECT_EQ(joined_skipping + skipping.Finish(), item["decoded_skip_special"].get<std::string>());
  }
  std::unique_ptr<Tokenizer> tokenizer_;
  TestJson golden_;
};

TEST_P(GoldenTokenizerTest, EncodesEveryCaseAsTheReference) {
  for (const TestJson& item : golden_["encode"]) {
    SCOPED_TRACE(item["text"].dump());
    EXPECT_EQ(tokenizer_->Encode(item["text"].get<std::string>()), Ids(item["ids"]));
  }
}

TEST_P(GoldenTokenizerTest, DecodesAndStreamsEveryCaseAsTheReference) {
  for (const char* list : {"encode", "decode_only"}) {
    for (const TestJson& item : golden_[list]) {
      SCOPED_TRACE(item["ids"].dump());
      CheckDecoding(item);
    }
  }
}

TEST_P(GoldenTokenizerTest, CutsTextAsTheReference) {
  size_t cases = 0;
  for (const TestJson& item : golden_["encode"]) {
    if (!item.contains("pre")) continue;
    ++cases;
    SCOPED_TRACE(item["text"].dump());
    EXPECT_EQ(tokenizer_->PreTokenize(item["text"].get<std::string>()),
              item["pre"].get<std::vector<std::string>>());
  }
  EXPECT_GE(cases, GetParam() == std::string("large") ? 200u : 0u);
}

TEST_P(GoldenTokenizerTest, EncodesOneTextFromManyThreads) {
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (const TestJson& item : golden_["encode"]) {
        if (tokenizer_->Encode(item["text"].get<std::string>()) != Ids(item["ids"])) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

INSTANTIATE_TEST_SUITE_P(Goldens, GoldenTokenizerTest, ::testing::Values("small", "large"));

// Made with Hugging Face tokenizers 0.23.3 from random texts of all planes, Unicode 16 letters
// among them.
TEST(TokenizerRandomTest, AgreesWithTheReferenceWithAndWithoutIgnoreMerges) {
  const TestJson data = ReadJson("tests/runtime/text/data/tokenizer_random.json");
  const TestJson large = ReadJson("tests/goldens/tokenizers/large/tokenizer.json");
  for (const char* variant : {"as_is", "merges_always", "gpt2_split", "normalized_added"}) {
    TestJson json = large;
    if (variant == std::string("merges_always")) {
      json["model"]["ignore_merges"] = false;
      for (TestJson& merge : json["model"]["merges"]) {
        merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
      }
    } else if (variant == std::string("gpt2_split")) {
      json["pre_tokenizer"] = {
          {"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
    } else if (variant == std::string("normalized_added")) {
      for (size_t i = 0; i < json["added_tokens"].size(); i += 2)
        json["added_tokens"][i]["normalized"] = true;
    }
    const auto tokenizer = LoadFrom(json);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    ASSERT_GE(data[variant].size(), 60u);
    for (const TestJson& item : data[variant]) {
      EXPECT_EQ((*tokenizer)->Encode(item["text"].get<std::string>()), Ids(item["ids"]))
          << variant << item["text"];
    }
  }
}

// Merging as the definition says: again and again the lowest-ranked pair, leftmost first.
std::vector<int32_t> MergeByDefinition(const TestJson& json, const std::string& piece) {
  std::map<std::pair<std::string, std::string>, size_t> ranks;
  const TestJson& merges = json["model"]["merges"];
  for (size_t i = 0; i < merges.size(); ++i) ranks[{merges[i][0], merges[i][1]}] = i;
  std::vector<std::string> symbols;
  for (char c : piece) symbols.push_back(SpellByte(static_cast<unsigned char>(c)));
  while (true) {
    size_t best = symbols.size(), best_rank = merges.size();
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto found = ranks.find({symbols[i], symbols[i + 1]});
      if (found != ranks.end() && found->second < best_rank) {
        best = i;
        best_rank = found->second;
      }
    }
    if (best == symbols.size()) break;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
  std::vector<int32_t> ids;
  for (const std::string& symbol : symbols) ids.push_back(json["model"]["vocab"][symbol]);
  return ids;
}

TEST(TokenizerMergeTest, EqualsTheDefinitionOnRandomMergeTables) {
  std::mt19937 random(lockstep::testing::TestSeed());
  for (int round = 0; round < 30; ++round) {
    std::vector<std::string> tokens = {"a", "b", "c"};
    std::vector<std::pair<std::string, std::string>> merges;
    for (int i = 0; i < 25; ++i) {
      const std::string left = tokens[random() % tokens.size()],
                        right = tokens[random() % tokens.size()];
      if (left.size() + right.size() > 12) continue;
      if (std::find(merges.begin(), merges.end(), std::pair(left, right)) != merges.end()) continue;
      merges.emplace_back(left, right);
      tokens.push_back(left + right);
    }
    // Ranks need not follow the order in which tokens become possible.
    TestJson json = SmallTokenizerJson(merges);
    std::shuffle(json["model"]["merges"].begin(), json["model"]["merges"].end(), random);
    const auto tokenizer = LoadFrom(json);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    for (int i = 0; i < 20; ++i) {
      std::string piece;
      for (size_t n = random() % 60 + 1; n > 0; --n) piece.push_back("abc"[random() % 3]);
      EXPECT_EQ((*tokenizer)->Encode(piece), MergeByDefinition(json, piece)) << piece;
    }
  }
}

TEST(TokenizerMergeTest, AWholePieceIsTakenAtOnceOnlyWithIgnoreMerges) {
  // "abc" is a token that no merge of "ab" and "c" reaches: "bc" comes first and "a"+"bc" is no
  // merge.
  TestJson json = SmallTokenizerJson({{"b", "c"}, {"a", "b"}, {"ab", "c"}});
  auto merging = LoadFrom(json);
  ASSERT_TRUE(merging.ok()) << merging.status();
  EXPECT_EQ((*merging)->Encode("abc"), (std::vector<int32_t>{'a', 256}));
  json["model"]["ignore_merges"] = true;
  auto whole = LoadFrom(json);
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_EQ((*whole)->Encode("abc"), (std::vector<int32_t>{258}));
  EXPECT_EQ((*whole)->Encode("abcd"), (std::vector<int32_t>{'a', 256, 'd'}));
}

// Quadratic merging, splitting or matching would take hours here, not the moments that this takes.
TEST(TokenizerComplexityTest, MegabytesOfOneKindDoNotBlowUp) {
  const auto tokenizer = GoldenTokenizer("large");
  ASSERT_NE(tokenizer, nullptr);
  constexpr size_t kBytes = size_t{1} << 20;
  const auto repeat = [](const std::string& unit) {
    std::string text;
    while (text.size() < kBytes) text += unit;
    return text;
  };
  for (const std::string& text :
       {repeat("a"), repeat(" "), repeat("\n"), repeat("ab"), repeat(" \n"),
        repeat(std::string(4096, ' ') + "\n"), repeat(std::string(1000, ' ') + "x"), repeat("<|us"),
        repeat("'"), repeat("\xE6\x97\xA5"), std::string(kBytes, ' ') + "x",
        repeat("\xF0\x93\x91\xB0"), std::string(kBytes, '\xFF')}) {
    EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text), false), ReplaceInvalidUtf8(text))
        << text.substr(0, 8);
  }
}

TEST(TokenizerTextTest, InvalidUtf8BecomesReplacementCharactersFirst) {
  const auto tokenizer = GoldenTokenizer("small");
  ASSERT_NE(tokenizer, nullptr);
  const std::string text = "a\xFF<|user|>\xE6\x97 b\xED\xA0\x80";
  EXPECT_EQ(tokenizer->Encode(text),
            tokenizer->Encode("a\uFFFD<|user|>\uFFFD b\uFFFD\uFFFD\uFFFD"));
  std::mt19937 random(lockstep::testing::TestSeed());
  for (int i = 0; i < 300; ++i) {
    std::string bytes;
    for (size_t n = random() % 40; n > 0; --n)
      bytes.push_back(static_cast<char>(random() % 3 ? random() : 0x80 | random()));
    const std::vector<int32_t> ids = tokenizer->Encode(bytes);
    EXPECT_EQ(tokenizer->Decode(ids, false), ReplaceInvalidUtf8(bytes));
  }
}

TEST(TokenizerTextTest, AddedTokensAreFoundLeftmostThenLongest) {
  const auto tokenizer = LoadFrom(SmallTokenizerJson({}, {"<|a|>", "<|a|>b", "|a", "<think>"}));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const Tokenizer& t = **tokenizer;
  const int32_t a = *t.IdOf("<|a|>"), ab = *t.IdOf("<|a|>b"), bar = *t.IdOf("|a"),
                think = *t.IdOf("<think>");
  EXPECT_EQ(t.Encode("<|a|>bc"), (std::vector<int32_t>{ab, 'c'}));
  EXPECT_EQ(t.Encode("<|a|>c"), (std::vector<int32_t>{a, 'c'}));
  EXPECT_EQ(t.Encode("<|ac"), (std::vector<int32_t>{'<', bar, 'c'}));
  EXPECT_EQ(t.Encode("<<think>"), (std::vector<int32_t>{'<', think}));
  EXPECT_EQ(t.Encode("<think"), (std::vector<int32_t>{'<', 't', 'h', 'i', 'n', 'k'}));
}

TEST(TokenizerTextTest, PlainEncodingTreatsAddedTokensAsText) {
  const auto tokenizer = LoadFrom(SmallTokenizerJson());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::vector<int32_t> ids = (*tokenizer)->EncodePlain("<think>");
  EXPECT_EQ(ids, (std::vector<int32_t>{'<', 't', 'h', 'i', 'n', 'k', '>'}));
  EXPECT_EQ((*tokenizer)->Encode("<think>"),
            (std::vector<int32_t>{*(*tokenizer)->IdOf("<think>")}));
}

TEST(TokenizerTextTest, KnowsWhichIdsHaveTokensAndWhichAreSpecial) {
  TestJson json = SmallTokenizerJson();
  json["added_tokens"][1]["id"] = 300;  // a gap before it
  const auto tokenizer = LoadFrom(json);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const Tokenizer& t = **tokenizer;
  EXPECT_EQ(t.vocab_size(), 301);
  EXPECT_TRUE(t.HasToken(0) && t.HasToken(256) && t.HasToken(300));
  EXPECT_FALSE(t.HasToken(257) || t.HasToken(301) || t.HasToken(-1) || t.HasToken(INT32_MAX));
  EXPECT_TRUE(t.IsSpecial(256));
  EXPECT_FALSE(t.IsSpecial(300));
  EXPECT_TRUE(t.IsAdded(300));
  EXPECT_FALSE(t.IsAdded('a'));
  EXPECT_EQ(t.TokenText(' '), "Ġ");
  EXPECT_EQ(t.TokenBytes(' '), " ");
  EXPECT_EQ(t.TokenText(256), "<|user|>");
  EXPECT_EQ(t.Decode(std::vector<int32_t>{'a', 257, -5, 400, 'b'}, false), "ab");
  EXPECT_FALSE(t.IdOf("nothing").has_value());
}

TEST(StreamingDecoderTest, HoldsPartsOfCharactersAndStartsAnewAfterFinish) {
  const auto tokenizer = LoadFrom(SmallTokenizerJson());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  StreamingDecoder decoder(**tokenizer, true);
  EXPECT_EQ(decoder.Push(0xE6), std::nullopt);
  EXPECT_EQ(decoder.Push(256), std::nullopt);  // special: skipped
  EXPECT_EQ(decoder.Push(0x97), std::nullopt);
  EXPECT_EQ(decoder.Push(0xA5), "日");
  EXPECT_EQ(decoder.Push(0xE6), std::nullopt);
  EXPECT_EQ(decoder.Push('x'), "\uFFFDx");
  EXPECT_EQ(decoder.Push(0xF0), std::nullopt);
  EXPECT_EQ(decoder.Push(0x9F), std::nullopt);
  EXPECT_EQ(decoder.Finish(), "\uFFFD");
  EXPECT_EQ(decoder.Finish(), "");
  EXPECT_EQ(decoder.Push('y'), "y");
}

}  // namespace
}  // namespace lockstep
