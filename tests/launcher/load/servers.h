// Scripted servers of OpenAI's API, good and bad, for tests of who loads them.
#pragma once

#include <string>
#include <vector>

#include "tests/support/fake_http.h"

namespace lockstep::testing {

inline std::string EventText(const std::string& data) { return "data: " + data + "\n\n"; }

inline std::string StreamHead() {
  return HttpText("200 OK", "Content-Type: text/event-stream\r\n", "");
}

inline std::string TokenEvent(const std::string& text = "x") {
  return EventText(R"({"choices":[{"index":0,"text":")" + text + R"(","finish_reason":null}]})");
}

// What comes behind the tokens.
inline std::string EndEvents(int prompt_tokens, int tokens, int cached_tokens = 0) {
  return EventText(R"({"choices":[{"index":0,"text":"","finish_reason":"length"}]})") +
         EventText(R"({"choices":[],"usage":{"prompt_tokens":)" + std::to_string(prompt_tokens) +
                   R"(,"completion_tokens":)" + std::to_string(tokens) +
                   R"(,"prompt_tokens_details":{"cached_tokens":)" + std::to_string(cached_tokens) +
                   R"(}},"timings":{"queue_ms":250}})") +
         EventText("[DONE]");
}

// An answer of as many events as tokens.
inline std::string WholeStream(int prompt_tokens, int tokens, int cached_tokens = 0) {
  std::string text = StreamHead();
  for (int i = 0; i < tokens; ++i) text += TokenEvent();
  return text + EndEvents(prompt_tokens, tokens, cached_tokens);
}

inline std::string JsonAnswer(const std::string& status, const std::string& body,
                              const std::string& headers = "") {
  return HttpText(status,
                  "Content-Type: application/json\r\nContent-Length: " +
                      std::to_string(body.size()) + "\r\n" + headers,
                  body);
}

inline std::string ErrorAnswer(const std::string& status, const std::string& message,
                               const std::string& headers = "") {
  return JsonAnswer(status, R"({"error":{"message":")" + message + R"("}})", headers);
}

inline std::string ModelsAnswer() {
  return JsonAnswer("200 OK", R"({"data":[{"id":"tiny","max_model_len":512,"vocab_size":976}]})");
}

// The answer to requests for anything but the models.
inline FakeHttpServer::Handler Serving(FakeHttpServer::Handler completions) {
  return [completions = std::move(completions)](const FakeRequest& request) {
    return request.path == "/v1/models" ? ModelsAnswer() : completions(request);
  };
}

}  // namespace lockstep::testing
