#include "runtime/serve/openai_reply.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "runtime/engine/defaults.h"
#include "runtime/serve/http_errors.h"
#include "runtime/serve/json_out.h"
#include "runtime/serve/reasoning_count.h"
#include "runtime/text/reply_parser.h"

namespace lockstep {
namespace {

// How one token is shown among log-probabilities.
Json LogprobEntry(const Tokenizer& tokenizer, int32_t id, double logprob) {
  const std::string_view bytes = tokenizer.TokenBytes(id);
  Json list = Json::array();
  for (const char byte : bytes) list.push_back(static_cast<unsigned char>(byte));
  // Part of a character shows as U+FFFD; the bytes are exact.
  return {{"token", tokenizer.Decode(std::span(&id, 1), false)},
          {"logprob", std::max(logprob, -9999.0)},
          {"bytes", std::move(list)}};
}

// What one choice adds to the answer: in streams a delta each, otherwise joined to one message.
class Choice {
 public:
  Choice(std::shared_ptr<OutputStream> output, const ReplySource& source)
      : output_(std::move(output)), tokenizer_(*source.tokenizer) {}
  virtual ~Choice() = default;

  // What is new, as values of "delta" (chats) or "text"; often none.
  virtual Json Take(const OutputDelta& delta) = 0;
  // What there was as a whole: the members of a choice but for index and finish_reason.
  virtual Json Whole() const = 0;
  virtual Json Logprobs(const std::vector<SampledToken>& tokens) = 0;
  // Of the tokens those of the reasoning, if that is known.
  virtual int64_t reasoning_tokens() const { return 0; }
  virtual bool called_tools() const { return false; }

  OutputStream& output() const { return *output_; }
  const Tokenizer& tokenizer() const { return tokenizer_; }

  const char* FinishReasonText() const {
    if (output_->summary().reason == FinishReason::kLength) return "length";
    return called_tools() ? "tool_calls" : "stop";
  }

  bool finished = false;
  std::vector<SampledToken> logprobs;  // of an answer that does not stream

 private:
  std::shared_ptr<OutputStream> output_;
  const Tokenizer& tokenizer_;
};

class ChatChoice final : public Choice {
 public:
  ChatChoice(std::shared_ptr<OutputStream> output, const ReplySource& source, ReplyStart start,
             const JsonValue& tools)
      : Choice(std::move(output), source),
        parser_(start, tools),
        reasoning_count_(start, *source.tokenizer),
        // Unique among the turns of a conversation, also across restarts of the server.
        call_prefix_(absl::StrFormat("call_%016x", FreshSeed())) {}

  Json Take(const OutputDelta& delta) override {
    reasoning_count_.Add(delta.ids);
    Json deltas = Json::array();
    Add(parser_.Push(delta.text), &deltas);
    if (delta.finished) Add(parser_.Finish(), &deltas);
    return deltas;
  }

  Json Whole() const override {
    Json message = {{"role", "assistant"}, {"content", content_}};
    if (content_.empty() && !calls_.empty()) message["content"] = nullptr;
    if (!reasoning_.empty()) message["reasoning_content"] = reasoning_;
    if (!calls_.empty()) message["tool_calls"] = calls_;
    return {{"message", std::move(message)}};
  }

  Json Logprobs(const std::vector<SampledToken>& tokens) override {
    Json content = Json::array();
    for (const SampledToken& token : tokens) {
      Json entry = LogprobEntry(tokenizer(), token.id, token.logprob);
      entry["top_logprobs"] = Json::array();
      for (const TokenLogprob& best : token.best)
        entry["top_logprobs"].push_back(LogprobEntry(tokenizer(), best.id, best.logprob));
      content.push_back(std::move(entry));
    }
    return {{"content", std::move(content)}, {"refusal", nullptr}};
  }

  int64_t reasoning_tokens() const override { return reasoning_count_.tokens(); }
  bool called_tools() const override { return !calls_.empty(); }

 private:
  void Add(const std::vector<ReplyEvent>& events, Json* deltas) {
    for (const ReplyEvent& event : events) {
      switch (event.kind) {
        case ReplyEvent::Kind::kReasoning:
          reasoning_ += event.text;
          deltas->push_back({{"reasoning_content", event.text}});
          break;
        case ReplyEvent::Kind::kContent:
          content_ += event.text;
          deltas->push_back({{"content", event.text}});
          break;
        case ReplyEvent::Kind::kToolCall: {
          Json call = {{"id", absl::StrFormat("%s_%d", call_prefix_, calls_.size())},
                       {"type", "function"},
                       {"function", {{"name", event.name}, {"arguments", event.arguments.Dump()}}}};
          calls_.push_back(call);
          Json part = {{"index", calls_.size() - 1}};
          part.update(call);
          deltas->push_back({{"tool_calls", Json::array({std::move(part)})}});
          break;
        }
      }
    }
  }

  ReplyParser parser_;
  ReasoningCount reasoning_count_;
  const std::string call_prefix_;
  std::string reasoning_, content_;
  Json calls_ = Json::array();
};

class TextChoice final : public Choice {
 public:
  using Choice::Choice;

  Json Take(const OutputDelta& delta) override {
    text_ += delta.text;
    // A token without text is told, too: clients measure when tokens come.
    return delta.text.empty() && delta.ids.empty() ? Json::array() : Json::array({delta.text});
  }
  Json Whole() const override { return {{"text", text_}}; }

  Json Logprobs(const std::vector<SampledToken>& tokens) override {
    Json names = Json::array(), values = Json::array(), best = Json::array();
    Json offsets = Json::array();
    for (const SampledToken& token : tokens) {
      const auto name = [&](int32_t id) { return tokenizer().Decode(std::span(&id, 1), false); };
      names.push_back(name(token.id));
      values.push_back(std::max(token.logprob, -9999.0));
      Json entry = Json::object();
      for (const TokenLogprob& one : token.best)
        entry[name(one.id)] = std::max(one.logprob, -9999.0);
      best.push_back(std::move(entry));
      offsets.push_back(offset_);
      // In characters, as clients cut their strings.
      for (const char byte : name(token.id)) offset_ += (byte & 0xC0) != 0x80;
    }
    return {{"tokens", std::move(names)},
            {"token_logprobs", std::move(values)},
            {"top_logprobs", std::move(best)},
            {"text_offset", std::move(offsets)}};
  }

 private:
  std::string text_;
  size_t offset_ = 0;
};

// Tokens per second.
double Rate(int64_t tokens, double seconds) {
  return seconds > 0 && tokens > 0 ? static_cast<double>(tokens) / seconds : 0;
}

class OpenAiReply final : public HttpReply {
 public:
  OpenAiReply(Engine& engine, const ReplySource& source, const OpenAiRequest& request, bool chat)
      : engine_(engine),
        source_(source),
        chat_(chat),
        stream_(request.stream),
        include_usage_(request.include_usage),
        with_logprobs_(request.requests[0].sampling.logprobs >= 0),
        choices_per_prompt_(request.choices_per_prompt),
        id_(absl::StrFormat("%s-%016x", chat ? "chatcmpl" : "cmpl", FreshSeed())),
        created_(UnixSeconds()) {}

  ~OpenAiReply() override {
    for (const auto& choice : choices_) {
      if (!choice->finished) engine_.Cancel(choice->output().id());
    }
  }

  Status Submit(OpenAiRequest request, const std::function<void()>& wake) {
    for (Request& one : request.requests) {
      LOCKSTEP_ASSIGN_OR_RETURN(std::shared_ptr<OutputStream> output,
                                engine_.Submit(std::move(one)));
      if (chat_) {
        choices_.push_back(
            std::make_unique<ChatChoice>(std::move(output), source_, request.start, request.tools));
      } else {
        choices_.push_back(std::make_unique<TextChoice>(std::move(output), source_));
      }
    }
    for (const auto& choice : choices_) choice->output().SetNotify(wake);
    return OkStatus();
  }

  std::optional<HttpHead> Head() override {
    if (stream_) {
      return HttpHead{.fields = {{"Content-Type", "text/event-stream"},
                                 {"Cache-Control", "no-store"},
                                 {"X-Accel-Buffering", "no"}}};
    }
    Gather();
    if (left_ > 0 && error_.ok()) return std::nullopt;
    HttpHead head{.fields = {{"Content-Type", "application/json"}, {"Cache-Control", "no-store"}}};
    if (error_.ok()) {
      out_ = Dump(WholeAnswer());
    } else {
      head.status = HttpStatusOf(error_);
      out_ = ErrorText(ErrorShape::kOpenAi, error_);
    }
    head.body_bytes = out_.size();
    return head;
  }

  HttpPart Next() override {
    if (!stream_) return {out_, true};
    out_.clear();
    if (!begun_) Begin();
    Gather();
    if (!error_.ok()) {
      out_ += "data: " + ErrorText(ErrorShape::kOpenAi, error_) + "\n\n";
      return {out_, true};
    }
    if (left_ > 0) return {out_, false};
    if (include_usage_) {
      Json chunk = Envelope(".chunk");
      chunk["choices"] = Json::array();
      chunk["usage"] = Usage();
      chunk["timings"] = Timings();
      AddEvent(chunk);
    }
    out_ += "data: [DONE]\n\n";
    return {out_, true};
  }

  std::string_view Sign() override { return stream_ ? ": still at work\n\n" : ""; }

 private:
  Json Envelope(const char* kind) const {
    const std::string object =
        chat_ ? std::string("chat.completion") + kind : std::string("text_completion");
    return {{"id", id_},
            {"object", object},
            {"created", created_},
            {"model", source_.model},
            {"system_fingerprint", source_.fingerprint}};
  }

  void AddEvent(const Json& event) { out_ += "data: " + Dump(event) + "\n\n"; }

  // `what`: the members of the choice in question.
  void AddChunk(size_t index, Json what, Json logprobs, Json finish_reason) {
    Json choice = {{"index", index}};
    choice.update(what);
    choice["logprobs"] = std::move(logprobs);
    choice["finish_reason"] = std::move(finish_reason);
    Json chunk = Envelope(".chunk");
    chunk["choices"] = Json::array({std::move(choice)});
    if (include_usage_) chunk["usage"] = nullptr;
    AddEvent(chunk);
  }

  void Begin() {
    begun_ = true;
    if (!chat_) return;
    for (size_t i = 0; i < choices_.size(); ++i)
      AddChunk(i, {{"delta", {{"role", "assistant"}, {"content", ""}}}}, nullptr, nullptr);
  }

  // Takes what came from all choices; streams get it as events.
  void Gather() {
    left_ = 0;
    for (size_t i = 0; i < choices_.size() && error_.ok(); ++i) {
      if (!choices_[i]->finished) GatherOf(i);
      if (!choices_[i]->finished) ++left_;
    }
  }

  void GatherOf(size_t index) {
    Choice& choice = *choices_[index];
    const OutputDelta delta = choice.output().Take();
    Json pieces = choice.Take(delta);
    choice.finished = delta.finished;
    if (delta.finished) {
      const Summary& summary = choice.output().summary();
      if (summary.reason != FinishReason::kStop && summary.reason != FinishReason::kLength) {
        error_ = summary.error.ok() ? absl::CancelledError("cancelled") : summary.error;
        return;
      }
    }
    if (!stream_) {
      choice.logprobs.insert(choice.logprobs.end(), delta.logprobs.begin(), delta.logprobs.end());
      return;
    }
    const char* const member = chat_ ? "delta" : "text";
    Json logprobs;
    if (with_logprobs_ && !delta.logprobs.empty()) {
      logprobs = choice.Logprobs(delta.logprobs);
      // Tokens whose text is not there yet go with nothing.
      if (pieces.empty()) pieces.push_back(chat_ ? Json::object() : Json(""));
    }
    for (Json& piece : pieces)
      AddChunk(index, {{member, std::move(piece)}}, std::exchange(logprobs, nullptr), nullptr);
    if (delta.finished) {
      AddChunk(index, {{member, chat_ ? Json::object() : Json("")}}, nullptr,
               choice.FinishReasonText());
    }
  }

  Json WholeAnswer() {
    Json answer = Envelope("");
    answer["choices"] = Json::array();
    for (size_t i = 0; i < choices_.size(); ++i) {
      Choice& choice = *choices_[i];
      Json entry = {{"index", i}};
      entry.update(choice.Whole());
      entry["logprobs"] = with_logprobs_ ? choice.Logprobs(choice.logprobs) : Json();
      entry["finish_reason"] = choice.FinishReasonText();
      answer["choices"].push_back(std::move(entry));
    }
    answer["usage"] = Usage();
    answer["timings"] = Timings();
    return answer;
  }

  Json Usage() const {
    int64_t prompt = 0, completion = 0, reasoning = 0, cached = 0;
    for (size_t i = 0; i < choices_.size(); ++i) {
      const struct Usage& usage = choices_[i]->output().summary().usage;
      if (i % choices_per_prompt_ == 0) {
        prompt += usage.prompt_tokens;
        cached += usage.cached_tokens;
      }
      completion += usage.completion_tokens;
      reasoning += choices_[i]->reasoning_tokens();
    }
    Json json = {{"prompt_tokens", prompt},
                 {"completion_tokens", completion},
                 {"total_tokens", prompt + completion},
                 {"prompt_tokens_details", {{"cached_tokens", cached}}}};
    if (chat_) json["completion_tokens_details"] = {{"reasoning_tokens", reasoning}};
    return json;
  }

  // Of the first choice, under llama.cpp's names.
  Json Timings() const {
    const Summary& summary = choices_[0]->output().summary();
    const struct Usage& usage = summary.usage;
    return {{"prompt_n", usage.prompt_tokens},
            {"prompt_ms", summary.timings.prefill_s * 1e3},
            {"prompt_per_second", Rate(usage.prompt_tokens, summary.timings.prefill_s)},
            {"predicted_n", usage.completion_tokens},
            {"predicted_ms", summary.timings.decode_s * 1e3},
            {"predicted_per_second", Rate(usage.completion_tokens - 1, summary.timings.decode_s)},
            {"queue_ms", summary.timings.queue_s * 1e3}};
  }

  Engine& engine_;
  const ReplySource source_;
  const bool chat_, stream_, include_usage_, with_logprobs_;
  const size_t choices_per_prompt_;
  const std::string id_;
  const int64_t created_;
  std::vector<std::unique_ptr<Choice>> choices_;
  size_t left_ = 0;  // choices that have not finished
  Status error_;
  bool begun_ = false;
  std::string out_;
};

StatusOr<std::unique_ptr<HttpReply>> Start(Engine& engine, const ReplySource& source,
                                           OpenAiRequest request, bool chat,
                                           const std::function<void()>& wake) {
  auto reply = std::make_unique<OpenAiReply>(engine, source, request, chat);
  LOCKSTEP_RETURN_IF_ERROR(reply->Submit(std::move(request), wake));
  return StatusOr<std::unique_ptr<HttpReply>>(std::move(reply));
}

}  // namespace

StatusOr<std::unique_ptr<HttpReply>> StartChatReply(Engine& engine, const ReplySource& source,
                                                    OpenAiRequest request,
                                                    const std::function<void()>& wake) {
  return Start(engine, source, std::move(request), true, wake);
}

StatusOr<std::unique_ptr<HttpReply>> StartTextReply(Engine& engine, const ReplySource& source,
                                                    OpenAiRequest request,
                                                    const std::function<void()>& wake) {
  return Start(engine, source, std::move(request), false, wake);
}

}  // namespace lockstep
