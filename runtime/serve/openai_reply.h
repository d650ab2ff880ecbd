// Answers of /v1/chat/completions and /v1/completions as they grow: server-sent events, or one JSON
// object at the end. Both are made of the same pieces.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/engine/engine.h"
#include "runtime/http/server.h"
#include "runtime/serve/openai_request.h"
#include "runtime/text/tokenizer.h"

namespace lockstep {

// What the answers say about where they come from.
struct ReplySource {
  std::string model;
  std::string fingerprint;  // of the server's build
  const Tokenizer* tokenizer = nullptr;
};

// Submits all choices of `request` and answers with them; when the client is gone they are
// cancelled. An error if one is refused (none is left running then). `engine` and the tokenizer
// must outlive the reply; `wake` as HttpHandler::answer has it.
StatusOr<std::unique_ptr<HttpReply>> StartChatReply(Engine& engine, const ReplySource& source,
                                                    OpenAiRequest request,
                                                    const std::function<void()>& wake);
StatusOr<std::unique_ptr<HttpReply>> StartTextReply(Engine& engine, const ReplySource& source,
                                                    OpenAiRequest request,
                                                    const std::function<void()>& wake);

}  // namespace lockstep
