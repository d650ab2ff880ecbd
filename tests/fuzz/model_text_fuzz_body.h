// What tests/fuzz/model_text_fuzz.cc runs on one input; fuzz_seeds_test.cc in tests/runtime/engine
// replays the seeds and damaged copies of them through it.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/check.h"
#include "runtime/engine/defaults.h"
#include "runtime/text/model_text.h"
#include "tests/fuzz/memory_files.h"
#include "tests/runtime/text/small_tokenizer.h"

namespace lockstep {

// Of any text that was accepted: replies end at tokens that exist, the defaults make a request that
// the engine takes, and a missing chat family has a reason.
inline void CheckModelText(const ModelText& text) {
  const std::vector<int32_t>& stops = text.stop_token_ids;
  for (const int32_t id : stops) LOCKSTEP_CHECK(text.tokenizer->HasToken(id));
  // Ascending, and each once.
  LOCKSTEP_CHECK(std::adjacent_find(stops.begin(), stops.end(), std::greater_equal<>()) ==
                 stops.end());
  LOCKSTEP_CHECK(text.chat_family.has_value() || !text.chat_warning.empty());
  const SamplingParams sampling = DefaultSampling(text.generation);
  LOCKSTEP_CHECK(ValidateSamplingParams(sampling, text.tokenizer->vocab_size()).ok());
}

// generation_config.json, a byte of 0, tokenizer_config.json, a byte of 0, config.json; an empty
// one is not there. Beside a sound tokenizer: an error of the model, or a text that can be used.
// True if it was accepted.
inline bool FuzzModelText(std::string_view data) {
  static const std::string tokenizer =
      SmallTokenizerJson({}, {"<|endoftext|>", "<|user|>", "<|observation|>"}).dump();
  MemoryFiles files;
  files.Add("tokenizer.json", tokenizer);
  for (const char* name : {"generation_config.json", "tokenizer_config.json", "config.json"}) {
    const std::string_view text = data.substr(0, data.find('\0'));
    if (!text.empty()) files.Add(name, text);
    data.remove_prefix(std::min(text.size() + 1, data.size()));
  }
  const MountedFiles mounted("fuzz:", files);
  // What reads no tokenizer comes first: most inputs are refused here, and cost little.
  for (const Status& status :
       {LoadGenerationDefaults("fuzz:").status(), ChooseChatFamily("fuzz:", "auto").status()}) {
    LOCKSTEP_CHECK(status.ok() || KindOf(status) == ErrorKind::kModel);
    if (!status.ok()) return false;
  }
  const StatusOr<ModelText> text = LoadModelText("fuzz:", "auto");
  LOCKSTEP_CHECK(text.ok() || KindOf(text.status()) == ErrorKind::kModel);
  if (text.ok()) CheckModelText(*text);
  return text.ok();
}

}  // namespace lockstep
