// An engine that says what a test wrote down: real tokenizer and template of models/tiny, no model.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "runtime/engine/engine.h"
#include "runtime/text/model_text.h"
#include "runtime/text/streaming_decoder.h"

namespace lockstep::testing {

inline constexpr int64_t kScriptedContext = 512;

// Every sequence says `script`, token by token, and then the end token.
class ScriptedExecutor final : public Executor {
 public:
  std::vector<int32_t> script;
  int32_t end_token = 0;
  std::atomic<int64_t> step_ms{0};
  std::atomic<uint64_t> fail_at{0};  // this step fails
  std::atomic<int64_t> rows{0};      // computed so far

  Status Execute(const StepPlan& plan, StepOutcome* outcome) override {
    if (step_ms > 0) std::this_thread::sleep_for(std::chrono::milliseconds(step_ms));
    if (plan.step == fail_at) return PeerLostError("rank 1 (spark-2, pid 7) is gone");
    *outcome = {};
    rows += plan.rows();
    for (const NewSequence& started : plan.started) said_[started.slot] = 0;
    for (const RowSpan& span : plan.spans) {
      if (span.output != SpanOutput::kSample) continue;
      size_t& said = said_[span.slot];
      const int32_t id = said < script.size() ? script[said] : end_token;
      ++said;
      outcome->slots.push_back(span.slot);
      outcome->tokens.push_back({id, -0.5, {{id, -0.5}, {7, -2.0}}});
    }
    return OkStatus();
  }
  StatusOr<std::vector<uint64_t>> Stop(uint64_t, ErrorKind) override {
    return std::vector<uint64_t>{1};
  }

 private:
  std::map<int32_t, size_t> said_;
};

struct ScriptedEngine {
  explicit ScriptedEngine(int64_t max_queue = 256) {
    const char* source = std::getenv("LOCKSTEP_SOURCE_DIR");
    auto loaded =
        LoadModelText(std::string(source == nullptr ? "." : source) + "/models/tiny", "glm-4.7");
    if (!loaded.ok()) std::abort();
    text = std::make_unique<ModelText>(std::move(*loaded));
    executor.end_token = *text->tokenizer->IdOf("<|user|>");
    EngineOptions options;
    options.limits = {.max_sequences = 4,
                      .max_rows = 72,
                      .max_outputs = 8,
                      .prefill_rows = 64,
                      .max_model_len = kScriptedContext,
                      .kv_blocks = 400};
    options.vocab_size = 2048;
    options.token_set.limit = text->tokenizer->vocab_size();
    options.max_queue = max_queue;
    options.probe_ms = 1000;
    options.make_decoder = [this] { return std::make_unique<Decoder>(*text->tokenizer); };
    engine = std::make_unique<Engine>(std::move(options), &executor);
  }

  void Say(std::string_view reply) { executor.script = text->tokenizer->Encode(reply); }

  std::unique_ptr<ModelText> text;
  ScriptedExecutor executor;
  std::unique_ptr<Engine> engine;

 private:
  class Decoder final : public TokenDecoder {
   public:
    explicit Decoder(const Tokenizer& tokenizer) : decoder_(tokenizer, true) {}
    std::string Push(int32_t id) override { return decoder_.Push(id).value_or(""); }
    std::string Finish() override { return decoder_.Finish(); }

   private:
    StreamingDecoder decoder_;
  };
};

}  // namespace lockstep::testing
