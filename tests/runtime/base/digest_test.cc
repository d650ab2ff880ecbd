#include "runtime/base/digest.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "tests/support/seed.h"

namespace lockstep {
namespace {

TEST(DigestStream, IsTheDigestOfTheWholeHoweverItIsCut) {
  std::mt19937_64 random(testing::TestSeed());
  std::vector<std::byte> bytes(100'000);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  for (const size_t size : {size_t{0}, size_t{1}, size_t{240}, size_t{241}, bytes.size()}) {
    const std::span<const std::byte> whole = std::span(bytes).first(size);
    for (int round = 0; round < 20; ++round) {
      DigestStream stream;
      for (size_t at = 0; at < size;) {
        const size_t count = std::min<size_t>(size - at, random() % 5000);
        stream.Add(whole.subspan(at, count));
        at += count;
      }
      EXPECT_EQ(stream.Value(), Digest64(whole)) << size;
    }
  }
  DigestStream other;
  other.Add(std::span(bytes).first(1));
  EXPECT_NE(other.Value(), Digest64({}));
}

}  // namespace
}  // namespace lockstep
