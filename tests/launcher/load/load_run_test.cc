#include "launcher/load/load_run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <mutex>

#include "tests/launcher/load/servers.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using testing::EndEvents;
using testing::ErrorAnswer;
using testing::EventText;
using testing::FakeHttpServer;
using testing::FakeRequest;
using ::testing::HasSubstr;
using testing::HttpText;
using testing::JsonAnswer;
using testing::ModelsAnswer;
using testing::StreamHead;
using testing::TokenEvent;
using testing::WholeStream;

// `count` requests for 4 tokens after 8, a few milliseconds apart.
std::vector<TraceRequest> Trace(int count) {
  std::vector<TraceRequest> trace;
  for (int i = 0; i < count; ++i) trace.push_back({0.003 * i, 8, 4});
  return trace;
}

HttpStreamOptions ServerAt(const std::string& url) {
  HttpStreamOptions server;
  server.server = *ParseHttpUrl("--url", url);
  return server;
}

LoadRunOptions OptionsFor(const FakeHttpServer& server) {
  LoadRunOptions options;
  options.server = ServerAt(server.url());
  options.model = {"tiny", 512, 976};
  options.request_timeout_ms = 30'000;
  return options;
}

LoadResult Load(FakeHttpServer::Handler handler, int requests = 1) {
  FakeHttpServer server(std::move(handler));
  return RunLoad(Trace(requests), OptionsFor(server));
}

// The only failure of one request.
LoadFailure FailureOf(FakeHttpServer::Handler handler, int64_t timeout_ms = 30'000) {
  FakeHttpServer server(std::move(handler));
  LoadRunOptions options = OptionsFor(server);
  options.request_timeout_ms = timeout_ms;
  const LoadResult result = RunLoad(Trace(1), options);
  EXPECT_EQ(result.requests, 1u);
  EXPECT_EQ(result.failed, 1u);
  EXPECT_EQ(result.completed, 0u);
  EXPECT_EQ(result.first_token.count(), 0u);
  EXPECT_EQ(result.failures.size(), 1u);
  return result.failures.empty() ? LoadFailure() : result.failures.front();
}

// All of six requests are answered once all have come: a client that waited for the first answer
// would wait in vain.
TEST(LoadRun, RequestsDoNotWaitForAnswers) {
  const auto answer = [&](const FakeRequest& request) {
    for (int i = 0; i < 1000 && request.server->requests() < 6; ++i) request.server->Sleep(10);
    return request.server->requests() < 6 ? ErrorAnswer("500 Oops", "alone") : WholeStream(8, 4);
  };
  FakeHttpServer server(answer);
  const LoadResult result = RunLoad(Trace(6), OptionsFor(server));
  EXPECT_EQ(result.completed, 6u);
  EXPECT_EQ(result.lag.count(), 6u);
}

TEST(LoadRun, WhatIsCountedIsWhatTheServerSays) {
  const LoadResult result = Load([](const FakeRequest&) { return WholeStream(8, 4, 5); }, 10);
  EXPECT_EQ(result.requests, 10u);
  EXPECT_EQ(result.completed, 10u);
  EXPECT_EQ(result.good, 10u);
  EXPECT_EQ(result.prompt_tokens, 80u);
  EXPECT_EQ(result.cached_tokens, 50u);
  EXPECT_EQ(result.output_tokens, 40u);
  EXPECT_EQ(result.events, 40u);
  EXPECT_EQ(result.too_short, 0u);
  EXPECT_EQ(result.first_token.count(), 10u);
  EXPECT_EQ(result.inter_token.count(), 30u);
  EXPECT_NEAR(result.queue.At(0.5), 0.25, 0.001);
  EXPECT_FALSE(result.stopped);
  EXPECT_GE(result.seconds, 0.027);
}

// From the first token to the last are as many seconds as from the first event to the last.
TEST(LoadRun, TokensThatComeTogetherShareTheTimeBetweenTheirEvents) {
  const auto answer = [&](const FakeRequest& request) {
    FakeHttpServer::Send(request, StreamHead() + TokenEvent());
    request.server->Sleep(20);
    FakeHttpServer::Send(request, TokenEvent());
    request.server->Sleep(60);
    return TokenEvent() + EndEvents(8, 6);
  };
  FakeHttpServer server(answer);
  const LoadResult result = RunLoad({{0, 8, 6}}, OptionsFor(server));
  ASSERT_EQ(result.completed, 1u);
  EXPECT_EQ(result.events, 3u);
  EXPECT_EQ(result.output_tokens, 6u);
  EXPECT_EQ(result.inter_token.count(), 5u);
  EXPECT_NEAR(result.inter_token.mean() * 5, result.end_to_end.mean() - result.first_token.mean(),
              1e-9);
}

// Prompts of half a megabyte that are all due at once keep the client back, and no server: what it
// is late by is part of what its users wait.
TEST(LoadRun, TimesAreFromWhenARequestWasDue) {
  FakeHttpServer server([](const FakeRequest&) { return WholeStream(100'000, 4); });
  const std::vector<TraceRequest> trace(20, TraceRequest{0, 100'000, 4});
  const LoadResult result = RunLoad(trace, OptionsFor(server));
  ASSERT_EQ(result.completed, 20u);
  EXPECT_GT(result.first_token.mean(), result.lag.mean());
  EXPECT_GT(result.end_to_end.mean(), result.lag.mean());
}

TEST(LoadRun, AnswersWithoutUsageAreCountedByTheirEvents) {
  const LoadResult result = Load([](const FakeRequest&) {
    return StreamHead() + TokenEvent() + TokenEvent() + TokenEvent() + EventText("[DONE]");
  });
  EXPECT_EQ(result.completed, 1u);
  EXPECT_EQ(result.output_tokens, 3u);
  EXPECT_EQ(result.prompt_tokens, 8u);
  EXPECT_EQ(result.too_short, 1u);
  EXPECT_EQ(result.queue.count(), 0u);
}

TEST(LoadRun, GoodIsWhatKeepsTheSlos) {
  int tokens = 4;
  const auto answer = [&](const FakeRequest& request) {
    FakeHttpServer::Send(request, StreamHead() + TokenEvent());
    request.server->Sleep(300);
    return TokenEvent() + TokenEvent() + TokenEvent() + EndEvents(8, tokens);
  };
  FakeHttpServer server(answer);
  const auto good = [&](double first_token_s, double inter_token_s) {
    LoadRunOptions options = OptionsFor(server);
    options.slo_first_token_s = first_token_s;
    options.slo_inter_token_s = inter_token_s;
    return RunLoad(Trace(3), options).good;
  };
  EXPECT_EQ(good(60, 60), 3u);
  EXPECT_EQ(good(1e-9, 60), 0u);
  EXPECT_EQ(good(60, 1e-9), 0u);
  EXPECT_EQ(good(0, 60), 3u);
  tokens = 2;
  EXPECT_EQ(good(0, 60), 0u);  // two tokens of the four that were asked for
}

TEST(LoadRun, RefusalsAreCountedByWhetherTheySayWhenToComeAgain) {
  const LoadResult result = Load(
      [](const FakeRequest& request) {
        if (request.number % 3 == 0) return ErrorAnswer("429 Busy", "full", "Retry-After: 7\r\n");
        if (request.number % 3 == 1) return ErrorAnswer("503 No", "ending", "Retry-After: x\r\n");
        return ErrorAnswer("503 No", "ending");
      },
      9);
  EXPECT_EQ(result.rejected, 9u);
  EXPECT_EQ(result.failed, 0u);
  EXPECT_EQ(result.refusals.at(429).count, 3u);
  EXPECT_EQ(result.refusals.at(429).with_retry_after, 3u);
  EXPECT_NEAR(result.refusals.at(429).retry_after_s.At(0.5), 7, 0.02);
  EXPECT_EQ(result.refusals.at(503).count, 6u);
  EXPECT_EQ(result.refusals.at(503).with_retry_after, 3u);
  EXPECT_EQ(result.refusals.at(429).first, "full");
  EXPECT_EQ(result.refusals.at(503).first, "ending");
  EXPECT_EQ(result.refusals.at(503).retry_after_s.count(), 0u);
}

TEST(LoadRun, WhatIsLongerThanTheContextIsRefusedAndNotFailed) {
  const LoadResult result = Load([](const FakeRequest&) {
    return JsonAnswer("400 Bad Request",
                      R"({"error":{"message":"m","code":"context_length_exceeded"}})");
  });
  EXPECT_EQ(result.refused, 1u);
  EXPECT_EQ(result.refusal, "m");
  EXPECT_EQ(result.failed, 0u);
}

TEST(LoadRun, ErrorsOfTheServerAreFailuresWithItsWords) {
  const LoadFailure error =
      FailureOf([](const FakeRequest&) { return ErrorAnswer("500 Oops", "no \\u001b luck"); });
  EXPECT_EQ(error.cause, "HTTP 500");
  EXPECT_EQ(error.first, "no \\x1b luck");
  const LoadFailure within = FailureOf([](const FakeRequest&) {
    return StreamHead() + TokenEvent() + EventText(R"({"error":{"message":"rank 1 is lost"}})");
  });
  EXPECT_EQ(within.cause, "an error within the stream");
  EXPECT_EQ(within.first, "rank 1 is lost");
}

TEST(LoadRun, GarbageIsAFailureByName) {
  const auto cause = [](const std::string& answer) {
    return FailureOf([answer](const FakeRequest&) { return answer; }).cause;
  };
  EXPECT_EQ(cause("\x16\x03\x01 no HTTP at all\r\n\r\n"), "the answer is not HTTP");
  EXPECT_EQ(cause(HttpText("200 OK", "", "<html>hello</html>")), "the answer is no event stream");
  EXPECT_EQ(cause(StreamHead() + EventText("<html>")), "an event that is of no completion");
  EXPECT_EQ(cause(StreamHead() + TokenEvent()), "the stream stopped before its end");
  EXPECT_EQ(cause(StreamHead() + "data: {\"choi"), "the answer is no event stream");
  EXPECT_EQ(cause(StreamHead() + EventText("[DONE]")), "an answer without a token");
  EXPECT_EQ(cause(StreamHead() + "data: " + std::string(2 << 20, 'x')),
            "an event longer than 1 MiB");
  std::string endless = StreamHead();
  for (int i = 0; i < 100'000; ++i) endless += TokenEvent();
  EXPECT_EQ(cause(endless), "more events than tokens were asked for");
  EXPECT_EQ(cause(StreamHead() + TokenEvent() + TokenEvent() + EndEvents(8, 1 << 24)),
            "more tokens than were asked for");
}

TEST(LoadRun, ConnectionsThatBreakAreFailuresByName) {
  const auto cause = [](const std::string& answer) {
    return FailureOf([answer](const FakeRequest&) { return answer; }).cause;
  };
  EXPECT_EQ(cause(""), "the connection broke");
  const std::string promised = "Content-Type: text/event-stream\r\nContent-Length: 100000\r\n";
  EXPECT_EQ(cause(HttpText("200 OK", promised, TokenEvent())), "the connection broke");
  EXPECT_EQ(cause(HttpText("200 OK", "Transfer-Encoding: chunked\r\n", "7\r\ndata")),
            "the connection broke");
}

TEST(LoadRun, AServerThatHangsIsGivenUpInTime) {
  for (const std::string& begun : {std::string(), StreamHead() + TokenEvent()}) {
    const auto answer = [&](const FakeRequest& request) {
      FakeHttpServer::Send(request, begun);
      request.server->Sleep(60'000);
      return std::string();
    };
    FakeHttpServer server(answer);
    LoadRunOptions options = OptionsFor(server);
    options.request_timeout_ms = 200;
    const LoadResult result = RunLoad(Trace(2), options);
    ASSERT_EQ(result.failures.size(), 1u);
    EXPECT_EQ(result.failures.front().cause, "no end in time");
    EXPECT_EQ(result.failures.front().count, 2u);
  }
}

TEST(LoadRun, AServerThatIsGoneIsAFailureAndTheOthersAreSent) {
  LoadRunOptions options;
  {
    FakeHttpServer server([](const FakeRequest&) { return std::string(); });
    options = OptionsFor(server);
  }
  const LoadResult result = RunLoad(Trace(5), options);
  EXPECT_EQ(result.requests, 5u);
  ASSERT_EQ(result.failures.size(), 1u);
  EXPECT_EQ(result.failures.front().cause, "no connection");
  EXPECT_EQ(result.failures.front().count, 5u);
}

TEST(LoadRun, StopsWhenItIsTold) {
  const auto answer = [&](const FakeRequest& request) {
    request.server->Sleep(60'000);
    return std::string();
  };
  FakeHttpServer server(answer);
  LoadRunOptions options = OptionsFor(server);
  options.stop = [&] { return server.requests() >= 2; };
  std::vector<TraceRequest> trace = Trace(2);
  trace.push_back({1e6, 8, 4});
  const LoadResult result = RunLoad(trace, options);
  EXPECT_TRUE(result.stopped);
  EXPECT_EQ(result.requests, 2u);
  EXPECT_EQ(result.unfinished, 2u);
  EXPECT_EQ(result.failed, 0u);
}

// While it is behind, too.
TEST(LoadRun, StopsAmongManyThatAreDue) {
  FakeHttpServer server([](const FakeRequest&) { return WholeStream(8, 4); });
  LoadRunOptions options = OptionsFor(server);
  int asked = 0;
  options.stop = [&] { return ++asked > 3; };
  const LoadResult result = RunLoad(std::vector<TraceRequest>(500, {0, 8, 4}), options);
  EXPECT_TRUE(result.stopped);
  EXPECT_LE(result.requests, 3u);
}

// Tokens may have no text: special ones, and parts of a character.
TEST(LoadRun, TokensWithoutTextHaveTheirTime) {
  const LoadResult result = Load([](const FakeRequest&) {
    return StreamHead() + TokenEvent("") + TokenEvent() + TokenEvent("") + TokenEvent("") +
           EndEvents(8, 4);
  });
  EXPECT_EQ(result.completed, 1u);
  EXPECT_EQ(result.events, 4u);
  EXPECT_EQ(result.inter_token.count(), 3u);
}

TEST(LoadRun, TheKeyGoesWithEveryRequest) {
  std::vector<std::string> heads;
  std::mutex mutex;
  const auto answer = [&](const FakeRequest& request) {
    const std::lock_guard lock(mutex);
    heads.push_back(request.head);
    return request.path == "/v1/models" ? ModelsAnswer() : WholeStream(8, 4);
  };
  FakeHttpServer server(answer);
  LoadRunOptions options = OptionsFor(server);
  options.server.key = "the-key";
  ASSERT_TRUE(AskServer(options.server, "tiny", nullptr).ok());
  EXPECT_EQ(RunLoad(Trace(2), options).completed, 2u);
  ASSERT_EQ(heads.size(), 3u);
  for (const std::string& head : heads)
    EXPECT_THAT(head, HasSubstr("Authorization: Bearer the-key\r\n"));
  EXPECT_THAT(heads[0], HasSubstr("GET /v1/models "));
  EXPECT_THAT(heads[1], HasSubstr("POST /v1/completions "));
  EXPECT_THAT(heads[1], HasSubstr("Content-Type: application/json\r\n"));
}

TEST(AskServer, SaysWhatIsWrongAndWhatToDo) {
  const auto error = [](const std::string& answer, const std::string& model = "") {
    FakeHttpServer server([answer](const FakeRequest&) { return answer; });
    const auto facts = AskServer(ServerAt(server.url()), model, nullptr);
    EXPECT_FALSE(facts.ok()) << answer;
    EXPECT_THAT(MessageOf(facts.status()), HasSubstr("--url " + server.url()));
    return MessageOf(facts.status());
  };
  EXPECT_THAT(error(ErrorAnswer("401 Unauthorized", "a wrong key")),
              AllOf(HasSubstr("a wrong key"), HasSubstr("--api-key-file")));
  EXPECT_THAT(error(ErrorAnswer("503 Wait", "it loads")),
              AllOf(HasSubstr("it loads"), HasSubstr("when it is ready")));
  EXPECT_THAT(error(HttpText("404 Not Found", "", "nothing here")), HasSubstr("OpenAI's API"));
  EXPECT_THAT(error(HttpText("302 Found", "Location: http://127.0.0.1:1/\r\n", "")),
              HasSubstr("302"));
  EXPECT_THAT(error(HttpText("200 OK", "", "<html>")), HasSubstr("names no models"));
  EXPECT_THAT(error(ModelsAnswer(), "other"),
              AllOf(HasSubstr("no model 'other' but 'tiny'"), HasSubstr("--model")));
  EXPECT_THAT(error(HttpText("200 OK", "Content-Length: 500\r\n", "{")),
              HasSubstr("the connection broke"));
  EXPECT_THAT(error("garbage\r\n\r\n"), HasSubstr("not HTTP"));
  const std::string long_list = HttpText("200 OK", "", std::string(3 << 20, ' '));
  EXPECT_THAT(error(long_list), HasSubstr("--url"));
}

TEST(AskServer, ASilentServerCanBeLeft) {
  const auto answer = [&](const FakeRequest& request) {
    request.server->Sleep(60'000);
    return std::string();
  };
  FakeHttpServer server(answer);
  const auto facts = AskServer(ServerAt(server.url()), "", [&] { return server.requests() > 0; });
  EXPECT_EQ(KindOf(facts.status()), ErrorKind::kInterrupted);
}

TEST(ApiKey, IsTheFilesOneWord) {
  const std::string path = ::testing::TempDir() + "/key";
  const auto read = [&](const std::string& text) {
    std::ofstream(path) << text;
    return ReadApiKey(path);
  };
  EXPECT_EQ(*read("abc\n"), "abc");
  EXPECT_EQ(*read("  abc \r\n"), "abc");
  EXPECT_THAT(MessageOf(read("").status()), HasSubstr("is empty"));
  EXPECT_THAT(MessageOf(read("alice 9f86d08\n").status()), HasSubstr("SHA-256"));
  EXPECT_THAT(MessageOf(read("a\nb\n").status()), HasSubstr("one key and nothing else"));
  EXPECT_THAT(MessageOf(ReadApiKey("/none").status()), HasSubstr("--api-key-file"));
}

}  // namespace
}  // namespace lockstep
