// Errors as HTTP clients know them, in the shape of the API that they speak.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/http/server.h"

namespace lockstep {

enum class ErrorShape {
  kOpenAi,     // {"error": {"message", "type", "param", "code"}}
  kAnthropic,  // {"type": "error", "error": {"type", "message"}}
};

// The code of a RequestError that says that prompt and answer do not fit the context.
inline constexpr absl::StatusCode kContextExceeded = absl::StatusCode::kOutOfRange;

// The HTTP status that an error of a request or of the engine has: 400, 404 (another model), 408,
// 429, 500, 503.
int HttpStatusOf(const Status& error);

std::string ErrorText(ErrorShape shape, int http_status, std::string_view message,
                      std::string_view code = "");
std::string ErrorText(ErrorShape shape, const Status& error);
std::unique_ptr<HttpReply> ErrorReply(ErrorShape shape, int http_status, std::string_view message,
                                      std::vector<HttpField> more = {});
// With Retry-After where trying again makes sense, as the error says or as is usual.
std::unique_ptr<HttpReply> ErrorReply(ErrorShape shape, const Status& error);

}  // namespace lockstep
