// What run, chat, serve, worker and logits share: the executor of a session, the engine over it,
// and requests from options.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "launcher/session.h"
#include "runtime/base/options.h"
#include "runtime/base/status.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/group_executor.h"
#include "runtime/grammar/constraints.h"
#include "runtime/text/model_text.h"
#include "runtime/text/reply_parser.h"

namespace lockstep {

// Opens the session of a command that generates text. The text side of the checkpoint is read
// before its weights, on every rank, so that a bad tokenizer is told at once and not after loading;
// only rank 0 keeps it (`text` is empty elsewhere).
struct TextSession {
  std::unique_ptr<Session> session;
  std::shared_ptr<ModelText> text;
  std::unique_ptr<TokenConstraints> constraints;  // on every rank; null: there can be none
};
// `needs`: whatever the session needs beside the limits.
StatusOr<TextSession> OpenTextSession(const Options& options, SessionNeeds needs = {});

// Collective: every rank of the session makes its executor, that of its --mode. `constraints` must
// outlive it; where rank 0 gives them, all ranks do. `keeps`: the prefix cache stays over a
// restart, if --prefix-cache-dir says where and rank 0 keeps it too. A signal while it is read ends
// all ranks.
StatusOr<std::unique_ptr<GroupExecutor>> MakeExecutor(Session& session,
                                                      TokenConstraints* constraints = nullptr,
                                                      bool keeps = false);

// How long ranks 1.. leave the end to rank 0 after a signal, if it does not let answers end first.
inline constexpr int64_t kEndAtOnceMs = 2'000;

// Ranks 1..: computes plans until rank 0 ends. Ctrl-C and SIGTERM leave the end to rank 0, which
// gets the same signal as a rule; if it has not ended after `patience_ms`, this rank tells the
// others that it goes.
Status WorkForRankZero(Session& session, int64_t patience_ms = kEndAtOnceMs,
                       TokenConstraints* constraints = nullptr);

// The same through losses of other ranks, where --recover mends them.
Status WorkThroughLosses(Session& session, int64_t patience_ms, TokenConstraints* constraints);
// A UsageError where --recover cannot be kept, or --prefix-cache-dir has no cache or not its bits.
Status CheckServing(const Options& options);

// Whether the group adds in an order of its own, so that a row's bits depend on those beside it.
bool AddsAsItLikes(Session& session);
// What the engine of rank 0 may plan.
SchedulerLimits LimitsOf(Session& session);
// The engine of rank 0 over `executor`. All must outlive it. `probe_ms` as EngineOptions has it.
std::unique_ptr<Engine> MakeEngine(Session& session, const ModelText& text, Executor* executor,
                                   int64_t probe_ms = 0, TokenConstraints* constraints = nullptr);

// Ids without a token: padding of the vocabulary and holes in the tokenizer.
TokenSet SampledTokens(const Tokenizer& tokenizer, int64_t vocab_size);

// Sampling and stopping from the options, over generation_config.json, over neutral values. The
// seed is fresh unless given.
Request RequestFromOptions(const Options& options, const ModelText& text);

// What was generated, split.
struct Generated {
  std::string text;
  std::string reasoning;
  std::vector<ParsedReply::ToolCall> tool_calls;
  std::vector<int32_t> ids;
  std::vector<SampledToken> logprobs;  // one per id, if asked for
  Summary summary;
};

// Submits and follows one request to its end. `parser` splits the text (null: all of it is
// content); `show` gets the events as they come. Ctrl-C cancels the request and returns
// InterruptedError; an error of the engine or of the request is returned. `generated` is filled as
// far as it came.
Status Generate(Engine& engine, Request request, ReplyParser* parser,
                const std::function<void(const ReplyEvent&)>& show, Generated* generated);

// Tokens per second; 0 where nothing was measured.
double PrefillRate(const Summary& summary);
double DecodeRate(const Summary& summary);

}  // namespace lockstep
