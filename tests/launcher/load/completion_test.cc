#include "launcher/load/completion.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

namespace lockstep {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;

TEST(Completion, ARequestSaysThePromptOfTheTraceAndItsLengths) {
  const TraceRequest request{1.5, 40, 7, 3, 30, "al\"ice"};
  const Json body = Json::parse(CompletionBody(request, 11, 5, 1000, "a model"));
  EXPECT_EQ(body["prompt"].get<std::vector<int32_t>>(), PromptOf(request, 11, 5, 1000));
  EXPECT_EQ(body["max_tokens"], 7);
  EXPECT_EQ(body["model"], "a model");
  EXPECT_EQ(body["user"], "al\"ice");
  EXPECT_EQ(body["stream"], true);
  EXPECT_EQ(body["ignore_eos"], true);
  EXPECT_EQ(body["stream_options"]["include_usage"], true);
  EXPECT_FALSE(Json::parse(CompletionBody({0, 1, 1}, 0, 1, 2, "m")).contains("user"));
}

TEST(Completion, EventsSayWhatTheyBring) {
  const CompletionEvent text =
      ReadCompletionEvent(R"({"choices":[{"text":" a","finish_reason":null}],"usage":null})");
  EXPECT_TRUE(text.token && !text.finished && !text.strange && !text.done);
  EXPECT_EQ(text.completion_tokens, -1);
  const CompletionEvent end =
      ReadCompletionEvent(R"({"choices":[{"text":"","finish_reason":"length"}]})");
  EXPECT_TRUE(!end.token && end.finished);
  const CompletionEvent usage = ReadCompletionEvent(
      R"({"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,
          "prompt_tokens_details":{"cached_tokens":3}},"timings":{"queue_ms":250}})");
  EXPECT_EQ(usage.prompt_tokens, 5);
  EXPECT_EQ(usage.completion_tokens, 2);
  EXPECT_EQ(usage.cached_tokens, 3);
  EXPECT_EQ(usage.queue_s, 0.25);
  EXPECT_TRUE(ReadCompletionEvent("[DONE]").done);
  EXPECT_EQ(ReadCompletionEvent(R"({"error":{"message":"rank 1 is lost"}})").error,
            "rank 1 is lost");
  EXPECT_EQ(ReadCompletionEvent(R"({"error":"\u001b[31mred"})").error, "\\x1b[31mred");
  EXPECT_EQ(ReadCompletionEvent(R"({"error":{}})").error, "no message");
}

TEST(Completion, WhatIsNoEventOfACompletionIsStrange) {
  for (const char* data : {"", "7", "[]", "{", "{}", "[DONE", R"({"choices":7})", R"("x")"})
    EXPECT_TRUE(ReadCompletionEvent(data).strange) << data;
  EXPECT_TRUE(ReadCompletionEvent(std::string(100'000, '[')).strange);
  const CompletionEvent absurd = ReadCompletionEvent(
      R"({"choices":[7,{"text":7}],"usage":{"prompt_tokens":1e99,"completion_tokens":-3},
          "timings":{"queue_ms":-1}})");
  EXPECT_FALSE(absurd.strange || absurd.token);
  EXPECT_EQ(absurd.prompt_tokens, -1);
  EXPECT_EQ(absurd.completion_tokens, -1);
  EXPECT_EQ(absurd.queue_s, -1);
}

TEST(Completion, ErrorsOfTheThreeServersAreRead) {
  const ServerError ours = ReadServerError(
      R"({"error":{"message":"too long","type":"invalid_request_error","param":null,
          "code":"context_length_exceeded"}})");
  EXPECT_EQ(ours.message, "too long");
  EXPECT_TRUE(ours.too_long);
  EXPECT_TRUE(
      ReadServerError(R"({"object":"error","message":"This model's maximum context length is 4"})")
          .too_long);
  EXPECT_TRUE(
      ReadServerError(R"({"error":{"code":400,"message":"m","type":"exceed_context_size_error"}})")
          .too_long);
  const ServerError other = ReadServerError(R"({"detail":"Not Found"})");
  EXPECT_EQ(other.message, "Not Found");
  EXPECT_FALSE(other.too_long);
  EXPECT_EQ(ReadServerError("<html>\n\x1b").message, "<html>\\x0a\\x1b");
  EXPECT_LE(ReadServerError(std::string(10'000, 'x')).message.size(), kMostMessageBytes);
}

TEST(Completion, ModelsAreChosenByNameAndSayTheirSizes) {
  const std::string list =
      R"({"data":[{"id":"a","max_model_len":512,"vocab_size":976},
                  {"id":"b","meta":{"n_vocab":1000,"n_ctx_train":4096}}]})";
  const auto first = ReadModels(list, "");
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->model, "a");
  EXPECT_EQ(first->max_model_len, 512);
  EXPECT_EQ(first->vocab_size, 976);
  const auto second = ReadModels(list, "b");
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(second->max_model_len, 4096);
  EXPECT_EQ(second->vocab_size, 1000);
  EXPECT_THAT(MessageOf(ReadModels(list, "c").status()),
              AllOf(HasSubstr("no model 'c'"), HasSubstr("'a', 'b'"), HasSubstr("--model")));
  std::string many = R"({"data":[)";
  for (int i = 0; i < 100; ++i) many += R"({"id":"model-)" + std::to_string(i) + R"("},)";
  many.back() = ']';
  EXPECT_THAT(MessageOf(ReadModels(many + "}", "c").status()),
              AllOf(HasSubstr("and more"), Not(HasSubstr("model-99"))));
  for (const char* wrong : {"", "<html>", "{}", R"({"data":[]})", R"({"data":[{"id":7}]})"})
    EXPECT_THAT(MessageOf(ReadModels(wrong, "").status()), HasSubstr("names no models")) << wrong;
}

}  // namespace
}  // namespace lockstep
