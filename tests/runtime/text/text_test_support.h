// Golden files for the tests of runtime/text.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "runtime/text/json_value.h"
#include "tests/runtime/text/small_tokenizer.h"

namespace lockstep {

inline std::string SourcePath(const std::string& relative) {
  const char* root = std::getenv("LOCKSTEP_SOURCE_DIR");
  return std::string(root != nullptr ? root : ".") + "/" + relative;
}

inline std::string ReadFileOrDie(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  EXPECT_TRUE(in.good()) << path;
  return text.str();
}

inline TestJson ReadJson(const std::string& relative) {
  return TestJson::parse(ReadFileOrDie(SourcePath(relative)));
}

inline std::unique_ptr<Tokenizer> GoldenTokenizer(const std::string& name) {
  auto tokenizer =
      Tokenizer::Load(SourcePath("tests/goldens/tokenizers/" + name + "/tokenizer.json"));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

inline JsonValue ToValue(const TestJson& json) {
  auto value = ParseJson(json.dump());
  EXPECT_TRUE(value.ok()) << value.status();
  return value.ok() ? *std::move(value) : JsonValue();
}

}  // namespace lockstep
