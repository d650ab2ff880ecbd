// The seeds of the fuzz target for schemas, and damaged copies, through what the fuzzer runs.
#include <gtest/gtest.h>

#include <string>

#include "tests/fuzz/replay.h"
#include "tests/fuzz/reply_grammar_fuzz_body.h"

namespace lockstep {
namespace {

constexpr int kDamagedCopies = 40;

TEST(ReplyGrammarFuzzSeeds, NeitherTheyNorDamagedCopiesDoHarm) {
  EXPECT_GE(testing::ReplaySeeds("reply_grammar", kDamagedCopies,
                                 [](std::string_view data) { (void)FuzzReplyGrammar(data); }),
            5);
}

TEST(ReplyGrammarFuzzSeeds, SoundSeedsAreKept) {
  if (FuzzGrammars().constraints == nullptr) GTEST_SKIP() << "built without xgrammar";
  for (const char* name : {"object.json", "choices.json", "numbers.json", "strings.json"})
    EXPECT_TRUE(FuzzReplyGrammar(testing::ReadAll(testing::SeedPath("reply_grammar", name))))
        << name;
}

}  // namespace
}  // namespace lockstep
