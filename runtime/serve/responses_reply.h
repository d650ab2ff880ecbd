// Answers of /v1/responses as they grow: OpenAI's events, or one response at the end.
#pragma once

#include <functional>
#include <memory>

#include "runtime/base/status.h"
#include "runtime/engine/engine.h"
#include "runtime/http/server.h"
#include "runtime/serve/openai_reply.h"
#include "runtime/serve/openai_request.h"

namespace lockstep {

// As StartChatReply, for a request of one choice.
StatusOr<std::unique_ptr<HttpReply>> StartResponsesReply(Engine& engine, const ReplySource& source,
                                                         OpenAiRequest request,
                                                         const std::function<void()>& wake);

}  // namespace lockstep
