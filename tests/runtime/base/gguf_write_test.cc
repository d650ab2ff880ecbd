// Metadata that is written as a GGUF file is read back as it was.
#include <gtest/gtest.h>

#include "runtime/base/gguf.h"
#include "tests/support/golden.h"

namespace lockstep {
namespace {

TEST(GgufMetadataText, IsReadBackAsItWas) {
  std::map<std::string, GgufValue> metadata = {
      {"integer", int64_t{-7}},
      {"number", 0.1},
      {"flag", true},
      {"text", std::string("a \xe2\x82\xac")},
      {"integers", std::vector<int64_t>{1, -2, int64_t{1} << 40}},
      {"numbers", std::vector<double>{0.5, -1e30}},
      {"flags", std::vector<bool>{true, false}},
      {"texts", std::vector<std::string>{"", "b"}},
  };
  Gguf gguf;
  const std::string bytes = GgufMetadataText(metadata);
  const Status status = ParseGgufHeader(bytes, bytes.size(), "x.gguf", &gguf);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(gguf.metadata == metadata);
  EXPECT_TRUE(gguf.tensors.empty());
}

TEST(GgufMetadataText, HoldsAModelsWordsWithoutItsParts) {
  Gguf model =
      OpenGgufFiles(testing::SourcePath("tests/goldens/models/tiny-k-Q4_K_M.gguf")).value();
  auto with_parts = model.metadata;
  with_parts["split.count"] = int64_t{3};
  const std::string bytes = GgufMetadataText(with_parts);
  Gguf gguf;
  ASSERT_TRUE(ParseGgufHeader(bytes, bytes.size(), "x.gguf", &gguf).ok());
  EXPECT_TRUE(gguf.metadata == model.metadata);
  EXPECT_FALSE(gguf.metadata.empty());
}

}  // namespace
}  // namespace lockstep
