#include "runtime/serve/http_errors.h"

#include <utility>

#include "runtime/engine/request.h"
#include "runtime/serve/json_out.h"

namespace lockstep {
namespace {

const char* OpenAiType(int http_status) {
  switch (http_status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    case 503:
      return "unavailable_error";
    default:
      return http_status >= 500 ? "server_error" : "invalid_request_error";
  }
}

const char* AnthropicType(int http_status) {
  switch (http_status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 413:
      return "request_too_large";
    case 429:
      return "rate_limit_error";
    case 503:
      return "overloaded_error";
    default:
      return http_status >= 500 ? "api_error" : "invalid_request_error";
  }
}

}  // namespace

int HttpStatusOf(const Status& error) {
  switch (error.code()) {
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kDeadlineExceeded:
      return 408;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kUnavailable:
      return 503;
    default:
      break;
  }
  switch (KindOf(error)) {
    case ErrorKind::kRequest:
      return 400;
    case ErrorKind::kPeerLost:
    case ErrorKind::kInterrupted:
      return 503;
    default:
      return 500;
  }
}

std::string ErrorText(ErrorShape shape, int http_status, std::string_view message,
                      std::string_view code) {
  Json json;
  if (shape == ErrorShape::kAnthropic) {
    json = {{"type", "error"},
            {"error", {{"type", AnthropicType(http_status)}, {"message", message}}}};
  } else {
    json["error"] = {{"message", message},
                     {"type", OpenAiType(http_status)},
                     {"param", nullptr},
                     {"code", code.empty() ? Json() : Json(code)}};
  }
  return Dump(json);
}

std::string ErrorText(ErrorShape shape, const Status& error) {
  const char* code = "";
  if (error.code() == kContextExceeded) code = "context_length_exceeded";
  if (error.code() == absl::StatusCode::kNotFound) code = "model_not_found";
  return ErrorText(shape, HttpStatusOf(error), MessageOf(error), code);
}

std::unique_ptr<HttpReply> ErrorReply(ErrorShape shape, int http_status, std::string_view message,
                                      std::vector<HttpField> more) {
  return HttpText(http_status, "application/json", ErrorText(shape, http_status, message),
                  std::move(more));
}

std::unique_ptr<HttpReply> ErrorReply(ErrorShape shape, const Status& error) {
  const int status = HttpStatusOf(error);
  std::vector<HttpField> more;
  if (status == 429 || status == 503) {
    const int64_t said = RetryAfter(error), usual = status == 429 ? 1 : 5;
    more.push_back({"Retry-After", std::to_string(said > 0 ? said : usual)});
  }
  return HttpText(status, "application/json", ErrorText(shape, error), std::move(more));
}

}  // namespace lockstep
