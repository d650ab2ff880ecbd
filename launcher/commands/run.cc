// lockstep run: one prompt, the answer streamed to standard output.
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "launcher/commands/commands.h"
#include "launcher/commands/generation.h"
#include "launcher/commands/printer.h"
#include "launcher/process.h"
#include "runtime/base/log.h"
#include "runtime/text/chat_template.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

std::string PromptText(const Options& options) {
  std::string text;
  for (const std::string& word : options.prompt) text += (text.empty() ? "" : " ") + word;
  return text;
}

Status CheckPrompt(const Options& options) {
  if (PromptText(options).empty()) {
    return UsageError("the prompt is empty; give one: lockstep run --model DIR \"your question\"");
  }
  if (options.raw && !options.system.empty()) {
    return UsageError("--system needs the chat template, which --raw leaves out");
  }
  return OkStatus();
}

struct Prepared {
  std::vector<int32_t> ids;
  std::optional<ReplyParser> parser;
};

StatusOr<Prepared> PreparePrompt(const Options& options, const ModelText& text) {
  Prepared prepared;
  if (options.raw) {
    prepared.ids = text.tokenizer->Encode(PromptText(options));
    return prepared;
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const ChatFamily family, text.RequireChatFamily());
  ChatRequest chat;
  if (!options.system.empty()) chat.AddMessage("system", options.system);
  chat.AddMessage("user", PromptText(options));
  if (options.thinking != "auto") chat.enable_thinking = options.thinking == "on";
  LOCKSTEP_ASSIGN_OR_RETURN(const std::string rendered, RenderChat(family, chat));
  prepared.ids = text.tokenizer->Encode(rendered);
  prepared.parser.emplace(ReplyStartOf(rendered), JsonValue());
  return prepared;
}

std::string ToJson(const Generated& generated, const std::vector<uint64_t>& digests) {
  const Summary& summary = generated.summary;
  Json json;
  json["text"] = generated.text;
  json["reasoning"] = generated.reasoning;
  json["ids"] = generated.ids;
  json["finish_reason"] = FinishReasonName(summary.reason);
  json["usage"] = {{"prompt_tokens", summary.usage.prompt_tokens},
                   {"completion_tokens", summary.usage.completion_tokens},
                   {"total_tokens", summary.usage.prompt_tokens + summary.usage.completion_tokens}};
  json["timings"] = {{"queue_s", summary.timings.queue_s},
                     {"prefill_s", summary.timings.prefill_s},
                     {"decode_s", summary.timings.decode_s},
                     {"prefill_tokens_per_second", PrefillRate(summary)},
                     {"decode_tokens_per_second", DecodeRate(summary)}};
  json["digests"] = Json::array();
  for (const uint64_t digest : digests) json["digests"].push_back(absl::StrFormat("%016x", digest));
  if (!generated.tool_calls.empty()) {
    json["tool_calls"] = Json::array();
    for (const ParsedReply::ToolCall& call : generated.tool_calls) {
      json["tool_calls"].push_back({{"name", call.name}, {"arguments", call.arguments.Dump()}});
    }
  }
  if (!generated.logprobs.empty()) {
    json["logprobs"] = Json::array();
    for (const SampledToken& token : generated.logprobs) {
      Json best = Json::array();
      for (const TokenLogprob& entry : token.best)
        best.push_back({{"id", entry.id}, {"logprob", entry.logprob}});
      json["logprobs"].push_back(
          {{"id", token.id}, {"logprob", token.logprob}, {"best", std::move(best)}});
    }
  }
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

void PrintSpeed(const Summary& summary) {
  std::fprintf(stderr, "prefill: %lld tokens, %.1f tokens/s; decode: %lld tokens, %.1f tokens/s\n",
               static_cast<long long>(summary.usage.prompt_tokens), PrefillRate(summary),
               static_cast<long long>(summary.usage.completion_tokens), DecodeRate(summary));
}

Status RunOnRankZero(const Options& options, Session& session, const ModelText& text) {
  if (!text.chat_warning.empty() && !options.raw) log::Warning("%s", text.chat_warning);
  LOCKSTEP_ASSIGN_OR_RETURN(Prepared prepared, PreparePrompt(options, text));
  LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<GroupExecutor> executor, MakeExecutor(session));
  const std::unique_ptr<Engine> engine = MakeEngine(session, text, executor.get());

  Request request = RequestFromOptions(options, text);
  request.prompt = std::move(prepared.ids);
  Generated generated;
  AnswerPrinter printer(options.json);
  const Status status = Generate(
      *engine, std::move(request), prepared.parser ? &*prepared.parser : nullptr,
      [&](const ReplyEvent& event) { printer.Show(event); }, &generated);
  printer.End();
  if (!options.json && status.ok() && generated.text.empty() && !generated.reasoning.empty()) {
    log::Warning(
        "the answer ended while the model was still thinking; raise --max-tokens or use --thinking "
        "off");
  }
  const ErrorKind reason = status.ok() || !engine->status().ok() ? ErrorKind{0} : KindOf(status);
  const StatusOr<std::vector<uint64_t>> digests = engine->Stop(reason);
  LOCKSTEP_RETURN_IF_ERROR(status);
  if (!digests.ok()) return digests.status();
  if (options.json) std::printf("%s\n", ToJson(generated, *digests).c_str());
  PrintSpeed(generated.summary);
  return OkStatus();
}

}  // namespace

Status RunCommand(const Options& options) {
  LOCKSTEP_RETURN_IF_ERROR(CheckPrompt(options));
  LOCKSTEP_ASSIGN_OR_RETURN(const TextSession opened, OpenTextSession(options));
  const InterruptScope scope;
  Session& session = *opened.session;
  return session.Close(session.rank() == 0 ? RunOnRankZero(options, session, *opened.text)
                                           : WorkForRankZero(session));
}

}  // namespace lockstep
