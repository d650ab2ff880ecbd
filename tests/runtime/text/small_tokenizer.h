// Small tokenizers made in memory, for tests and fuzz targets.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "runtime/text/tokenizer.h"

namespace lockstep {

using TestJson = nlohmann::ordered_json;

// GPT-2's spelling of a byte, written out independently of the code under test.
inline std::string SpellByte(int byte) {
  int code = byte;
  const bool itself = (byte > 32 && byte < 127) || (byte > 160 && byte != 173);
  if (!itself) {
    code = 256 + (byte <= 32 ? byte : byte <= 160 ? 33 + byte - 127 : 67);
  }
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

// A tokenizer.json with the 256 bytes (byte b has the id b), the merges (each makes a new token,
// 256 and on) and the added tokens behind them.
inline TestJson SmallTokenizerJson(
    const std::vector<std::pair<std::string, std::string>>& merges = {},
    const std::vector<std::string>& added = {"<|user|>", "<think>"}) {
  TestJson vocab = TestJson::object(), merge_list = TestJson::array(),
           added_list = TestJson::array();
  for (int byte = 0; byte < 256; ++byte) vocab[SpellByte(byte)] = byte;
  int next = 256;
  for (const auto& [left, right] : merges) {
    merge_list.push_back({left, right});
    if (!vocab.contains(left + right)) vocab[left + right] = next++;
  }
  for (const std::string& content : added) {
    added_list.push_back({{"id", next++},
                          {"content", content},
                          {"single_word", false},
                          {"lstrip", false},
                          {"rstrip", false},
                          {"normalized", false},
                          {"special", content[1] == '|'}});
  }
  return {{"version", "1.0"},
          {"added_tokens", added_list},
          {"normalizer", nullptr},
          {"pre_tokenizer",
           {{"type", "Sequence"},
            {"pretokenizers",
             {{{"type", "Split"},
               {"pattern", {{"Regex", "\\p{L}+|\\s+|."}}},
               {"behavior", "Isolated"},
               {"invert", false}},
              {{"type", "ByteLevel"},
               {"add_prefix_space", false},
               {"trim_offsets", true},
               {"use_regex", false}}}}}},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model",
           {{"type", "BPE"}, {"ignore_merges", false}, {"vocab", vocab}, {"merges", merge_list}}}};
}

inline StatusOr<std::unique_ptr<Tokenizer>> LoadFrom(const TestJson& json) {
  return Tokenizer::FromJson(json.dump(), "small.json");
}

}  // namespace lockstep
