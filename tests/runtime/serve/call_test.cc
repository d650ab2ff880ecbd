// Limits of clients, names of requests, and what both ends do with them.
#include "runtime/serve/call.h"

#include <chrono>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/base/clock.h"
#include "runtime/serve/http_api.h"
#include "runtime/serve/openai_request.h"
#include "tests/runtime/http/client.h"
#include "tests/runtime/serve/scripted_engine.h"
#include "tests/support/temporary.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using testing::Ask;
using testing::BodyOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using Json = nlohmann::json;
using ::testing::Not;
using testing::RawClient;
using ::testing::StartsWith;

constexpr int64_t kSecond = 1'000'000'000;

TEST(QuotasTest, SoManyRequestsAtOnce) {
  Quotas quotas;
  const Client client{"alice", {.requests = 2}};
  EXPECT_TRUE(quotas.Take(client, 1'000'000, kSecond).ok());
  EXPECT_TRUE(quotas.Take(client, 5, kSecond).ok());
  const Status third = quotas.Take(client, 5, kSecond);
  EXPECT_EQ(third.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(third), AllOf(HasSubstr("'alice'"), HasSubstr("2 requests at once")));
  EXPECT_EQ(RetryAfter(third), 1);
  EXPECT_TRUE(quotas.Take({"bob", {}}, 5, kSecond).ok());
  quotas.GiveBack(client, 5, 5, kSecond);
  EXPECT_EQ(quotas.Of(client, kSecond).requests, 1);
  EXPECT_TRUE(quotas.Take(client, 5, kSecond).ok());
}

TEST(QuotasTest, SoManyTokensAMinute) {
  Quotas quotas;
  const Client client{"alice", {.tokens_per_minute = 600}};  // 10 a second
  int64_t now = 5 * kSecond;
  EXPECT_TRUE(quotas.Take(client, 400, now).ok());
  EXPECT_EQ(quotas.Of(client, now).tokens, 200);
  // 50 are missing, which five seconds bring.
  const Status refused = quotas.Take(client, 250, now);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(refused), AllOf(HasSubstr("600 tokens a minute"), HasSubstr("200 are left"),
                                        HasSubstr("in 5 s")));
  EXPECT_EQ(RetryAfter(refused), 5);
  EXPECT_FALSE(quotas.Take(client, 250, now + 4 * kSecond).ok());
  now += 5 * kSecond;
  EXPECT_TRUE(quotas.Take(client, 250, now).ok());
  // What was not used comes back, and more than a full bucket there never is.
  quotas.GiveBack(client, 400, 100, now);
  EXPECT_EQ(quotas.Of(client, now).tokens, 300);
  EXPECT_NEAR(quotas.Of(client, now).tokens_reset_s, 30, 1e-6);
  quotas.GiveBack(client, 250, 250, now);
  now += 3600 * kSecond;
  EXPECT_EQ(quotas.Of(client, now).tokens, 600);
  // One that may need more than there ever is takes all; what it used beyond is missing later.
  EXPECT_TRUE(quotas.Take(client, 10'000, now).ok());
  EXPECT_FALSE(quotas.Take(client, 1, now).ok());
  quotas.GiveBack(client, 10'000, 700, now);
  EXPECT_FALSE(quotas.Take(client, 1, now + 10 * kSecond).ok());
  EXPECT_TRUE(quotas.Take(client, 1, now + 11 * kSecond).ok());
}

TEST(QuotasTest, ALimitThatIsLiftedHoldsNobodyBack) {
  Quotas quotas;
  const Client limited{"alice", {.tokens_per_minute = 600}}, free{"alice", {}};
  EXPECT_TRUE(quotas.Take(limited, 600, kSecond).ok());
  quotas.GiveBack(limited, 600, 5000, kSecond);
  EXPECT_FALSE(quotas.Take(limited, 1, kSecond).ok());
  EXPECT_TRUE(quotas.Take(free, 1'000'000, 2 * kSecond).ok());
  EXPECT_EQ(quotas.Of(free, 2 * kSecond).tokens_reset_s, 0);
  // What was free stays free; a limit that comes back begins anew.
  EXPECT_EQ(quotas.Of(limited, 2 * kSecond).tokens, 600);
  EXPECT_TRUE(quotas.Take(limited, 200, 2 * kSecond).ok());
  quotas.GiveBack(free, 1'000'000, 1'000'000, 2 * kSecond);
  EXPECT_EQ(quotas.Of(limited, 2 * kSecond).tokens, 400);
}

TEST(QuotasTest, CallsThatOutliveAChangeEndByTheNewLimit) {
  Quotas quotas;
  const Client old{"alice", {.tokens_per_minute = 60}}, now{"alice", {.tokens_per_minute = 6000}};
  EXPECT_TRUE(quotas.Take(old, 50, kSecond).ok());
  EXPECT_TRUE(quotas.Take(now, 5, kSecond).ok());
  EXPECT_EQ(quotas.Of(now, 41 * kSecond).tokens, 4005);  // 60 - 55, and 100 a second
  EXPECT_EQ(quotas.Of(old, 41 * kSecond).tokens, 60);
  quotas.GiveBack(old, 50, 10, 41 * kSecond);
  EXPECT_EQ(quotas.Of(now, 41 * kSecond).tokens, 4045);
}

TEST(CallNamesTest, NamesAndTracesAreCheckedBeforeTheyAreRepeated) {
  EXPECT_TRUE(IsRequestId("req_01-A.b:c"));
  for (const std::string& wrong : {std::string(), std::string("a b"), std::string("a\r\nb"),
                                   std::string("a\"b"), std::string("é"), std::string(129, 'a')})
    EXPECT_FALSE(IsRequestId(wrong)) << wrong;
  const std::string trace = "0af7651916cd43dd8448eb211c80319c", span = "b7ad6b7169203331";
  const auto parsed = ParseTraceParent("00-" + trace + "-" + span + "-01");
  ASSERT_TRUE(parsed.has_value());
  EXPECT_EQ(parsed->trace, trace);
  EXPECT_EQ(parsed->flags, "01");
  EXPECT_TRUE(ParseTraceParent("01-" + trace + "-" + span + "-01-more").has_value());
  for (const std::string& wrong :
       {std::string(), "00-" + trace + "-" + span, "00-" + trace + "-" + span + "-01-more",
        "ff-" + trace + "-" + span + "-01", "00-" + std::string(32, '0') + "-" + span + "-01",
        "00-" + trace + "-" + std::string(16, '0') + "-01",
        "00-0AF7651916cd43dd8448eb211c80319c-" + span + "-01", "00-" + trace + "_" + span + "-01",
        "00-" + trace + "-" + span + "-0\n"})
    EXPECT_FALSE(ParseTraceParent(wrong).has_value()) << wrong;
}

// Of "test" and "other", as sha256sum prints them.
constexpr char kTest[] = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
constexpr char kOther[] = "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa";
constexpr char kAlice[] = "Authorization: Bearer test\r\n";
constexpr char kBob[] = "Authorization: Bearer other\r\n";

class CallTest : public ::testing::Test {
 protected:
  void Start(const std::string& limits) {
    directory_.Write("keys", std::string("alice ") + kTest + " " + limits + "\nbob " + kOther);
    auto keys = ApiKeys::Load(directory_.path() + "/keys");
    ASSERT_TRUE(keys.ok()) << keys.status();
    keys_ = std::move(*keys);
    access_ = std::make_unique<Access>(keys_.get());
    auto api = StartHttpApi({}, {"tiny", testing::kScriptedContext, 2048, 4, 1}, *scripted_.text,
                            access_.get(), *scripted_.engine);
    ASSERT_TRUE(api.ok()) << api.status();
    api_ = std::move(*api);
    scripted_.Say("</think>Yes.");
  }
  std::string Chat(const std::string& fields, Json body = Json::object(),
                   const std::string& path = "/v1/chat/completions") {
    body["messages"] = {{{"role", "user"}, {"content", "Hello"}}};
    if (!body.contains("max_tokens")) body["max_tokens"] = 50;
    return Ask(api_->port(), "POST", path, body.dump(), fields);
  }

  testing::TemporaryDirectory directory_;
  testing::ScriptedEngine scripted_;
  std::unique_ptr<ApiKeys> keys_;
  std::unique_ptr<Access> access_;
  std::unique_ptr<HttpApi> api_;
};

TEST_F(CallTest, RequestsBeyondALimitAreToldWhenToComeBack) {
  Start("requests=1");
  scripted_.executor.step_ms = 20;
  RawClient busy(api_->port());
  const std::string body =
      R"({"messages": [{"role": "user", "content": "x"}], "ignore_eos": true, "stream": true})";
  busy.Send(std::string("POST /v1/chat/completions HTTP/1.1\r\n") + kAlice +
            "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
  busy.ReadUntil("data:");
  EXPECT_THAT(Chat(kAlice), AllOf(StartsWith("HTTP/1.1 429"), HasSubstr("\r\nRetry-After: 1\r\n"),
                                  HasSubstr("rate_limit_error"), HasSubstr("1 requests at once"),
                                  HasSubstr("\r\nx-ratelimit-limit-requests: 1\r\n"),
                                  HasSubstr("\r\nx-ratelimit-remaining-requests: 0\r\n")));
  EXPECT_THAT(Chat(kAlice, {}, "/v1/messages"),
              AllOf(StartsWith("HTTP/1.1 429"), HasSubstr(R"("type":"error")")));
  EXPECT_THAT(Chat(kBob), AllOf(StartsWith("HTTP/1.1 200"), Not(HasSubstr("x-ratelimit"))));
  // A client that is gone makes room.
  busy.Close();
  std::string answer;
  for (int i = 0; i < 100 && !answer.starts_with("HTTP/1.1 200"); ++i) {
    answer = Chat(kAlice);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200"));
  // What has ended never stands in the way of what comes next.
  scripted_.executor.step_ms = 0;
  for (int i = 0; i < 20; ++i) EXPECT_THAT(Chat(kAlice), StartsWith("HTTP/1.1 200"));
}

TEST_F(CallTest, TokensBeyondALimitAreToldWhenToComeBack) {
  Start("tokens-per-minute=100");
  const auto begin = std::chrono::steady_clock::now();
  const std::string first = Chat(kAlice, {{"max_tokens", 60}});
  EXPECT_THAT(
      first, AllOf(StartsWith("HTTP/1.1 200"), HasSubstr("\r\nx-ratelimit-limit-tokens: 100\r\n")));
  const Json usage = Json::parse(BodyOf(first))["usage"];
  const int64_t left = 100 - usage["total_tokens"].get<int64_t>();
  // What was taken for the answer and not used is there again, and not more.
  const std::string refused = Chat(kAlice, {{"max_tokens", 99}});
  EXPECT_THAT(refused, AllOf(StartsWith("HTTP/1.1 429"), ContainsRegex("Retry-After: [0-9]+\r\n")));
  const std::string_view told = "100 tokens a minute, of which ";
  ASSERT_THAT(refused, HasSubstr(told));
  const int64_t left_then = std::atoll(refused.c_str() + refused.find(told) + told.size());
  // The bucket has filled since the first call began.
  const double passed_s =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  EXPECT_GE(left_then, left);
  EXPECT_LE(static_cast<double>(left_then), static_cast<double>(left) + 1 + passed_s * 100 / 60);
  EXPECT_THAT(Chat(kAlice, {{"max_tokens", left - usage["prompt_tokens"].get<int64_t>()}}),
              StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(Chat(kBob, {{"max_tokens", 400}}), StartsWith("HTTP/1.1 200"));
}

TEST_F(CallTest, WhoHangsUpBeforeTheFirstTokenPaysForThePrompt) {
  Start("tokens-per-minute=600");  // 10 a second
  scripted_.executor.step_ms = 100;
  std::string words;
  for (int i = 0; i < 250; ++i) words += " the";
  const std::string body = Json{{"prompt", words}, {"max_tokens", 20}, {"stream", true}}.dump();
  RawClient gone(api_->port());
  gone.Send(std::string("POST /v1/completions HTTP/1.1\r\n") + kAlice +
            "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
  const auto wait_for = [](const auto& reached) {
    for (int i = 0; i < 500 && !reached(); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return reached();
  };
  // 64 rows a step: four steps to the first token.
  ASSERT_TRUE(wait_for([&] { return scripted_.executor.rows >= 64; }));
  gone.Close();
  ASSERT_TRUE(wait_for([&] {
    const EngineLoad load = scripted_.engine->load();
    return load.running + load.waiting == 0;
  }));
  EXPECT_LT(scripted_.executor.rows, 250);
  EXPECT_NEAR(static_cast<double>(access_->quotas().Of(*access_->Find("test"), NowNs()).tokens),
              600 - 250, 40);
}

TEST_F(CallTest, LimitsChangeWithTheFile) {
  Start("requests=1");
  EXPECT_THAT(Chat(kAlice), HasSubstr("x-ratelimit-limit-requests: 1\r\n"));
  directory_.Write("keys", std::string("alice ") + kTest + " requests=7\nbob " + kOther);
  std::string answer;
  for (int i = 0; i < 60 && answer.find("limit-requests: 7") == std::string::npos; ++i) {
    answer = Chat(kAlice);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  EXPECT_THAT(answer, HasSubstr("x-ratelimit-limit-requests: 7\r\n"));
}

TEST_F(CallTest, EveryAnswerCarriesItsName) {
  Start("");
  for (const std::string& answer :
       {Chat(kAlice + std::string("x-request-id: my-1\r\n")),
        Chat("x-request-id: my-1\r\n"),  // 401
        Chat(kAlice + std::string("x-request-id: my-1\r\n"), {{"stream", true}}),
        Ask(api_->port(), "GET", "/health/live", "", "x-request-id: my-1\r\n"),
        Ask(api_->port(), "POST", "/nothing", "", kAlice + std::string("x-request-id: my-1\r\n"))})
    EXPECT_THAT(answer, AllOf(HasSubstr("\r\nx-request-id: my-1\r\n"),
                              HasSubstr("\r\nrequest-id: my-1\r\n")));
  for (const char* wrong : {"", "x-request-id: a b\r\n", "x-request-id: <script>\r\n"})
    EXPECT_THAT(Chat(kAlice + std::string(wrong)),
                ContainsRegex("\r\nx-request-id: [0-9a-f]+\r\n"));
  const std::string trace = "0af7651916cd43dd8448eb211c80319c";
  EXPECT_THAT(Chat(kAlice + ("traceparent: 00-" + trace + "-b7ad6b7169203331-01\r\n")),
              AllOf(ContainsRegex("\r\ntraceparent: 00-" + trace + "-[0-9a-f]+-01\r\n"),
                    Not(HasSubstr("b7ad6b7169203331"))));
  EXPECT_THAT(Chat(kAlice + std::string("traceparent: 00-zz\r\n")), Not(HasSubstr("traceparent")));
}

TEST_F(CallTest, ALineOfTheLogSaysWhatACallWasButNotWhatWasSaid) {
  Start("");
  scripted_.Say("</think>A secret answer.");
  ::testing::internal::CaptureStderr();
  log::SetForm(log::Form::kJson);
  log::Configure(log::Level::kInfo, -1);
  const std::string said = Chat(kAlice + std::string("x-request-id: my-1\r\n"));
  const Json usage = Json::parse(BodyOf(said))["usage"];
  (void)Chat("x-request-id: my-2\r\n");
  (void)Ask(api_->port(), "GET", "/health/live");
  (void)Ask(api_->port(), "GET", "/never/log/this", "", kBob);
  api_->Shutdown(1000);
  log::SetForm(log::Form::kText);
  log::Configure(log::Level::kInfo, -1);
  const std::string lines = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(lines, AllOf(Not(HasSubstr("Hello")), Not(HasSubstr("secret")),
                           Not(HasSubstr("health")), Not(HasSubstr("never"))));
  const auto line_of = [&](const std::string& what) {
    const size_t at = lines.find(what);
    if (at == std::string::npos) return Json();
    const size_t begin = lines.rfind('\n', at) + 1;
    return Json::parse(lines.substr(begin, lines.find('\n', at) - begin));
  };
  const Json first = line_of("my-1");
  EXPECT_EQ(first["event"], "request");
  EXPECT_EQ(first["route"], "POST /v1/chat/completions");
  EXPECT_EQ(first["key"], "alice");
  EXPECT_EQ(first["model"], "tiny");
  EXPECT_EQ(first["status"], 200);
  EXPECT_EQ(first["finish"], "stop");
  EXPECT_EQ(first["prompt_tokens"], usage["prompt_tokens"]);
  EXPECT_EQ(first["completion_tokens"], usage["completion_tokens"]);
  EXPECT_GE(first["total_ms"], first["ttft_ms"]);
  EXPECT_GE(first["ttft_ms"], first["queue_ms"]);
  const Json second = line_of("my-2");
  EXPECT_EQ(second["status"], 401);
  EXPECT_FALSE(second.contains("key"));
  EXPECT_EQ(line_of("\"status\":404")["route"], "");
}

TEST_F(CallTest, RequestsAreTheirClientsInTheEngine) {
  Start("weight=2.5 priority=3");
  const Client alice = *access_->Find("test");
  EXPECT_EQ(alice.limits.weight, 2.5);
  const auto admit = [&](int32_t wanted, std::optional<Client> client) {
    Request request;
    request.prompt = {1};
    request.priority = wanted;
    const auto call = std::make_shared<Call>(*access_, Arrival{.request_id = "x"}, client);
    EXPECT_TRUE(call->Admit(std::span(&request, 1), 100).ok());
    EXPECT_EQ(request.id, "x");
    return request;
  };
  EXPECT_EQ(admit(0, alice).client, "alice");
  EXPECT_EQ(admit(0, alice).weight, 2.5);
  // Later than the key's own may be asked for, earlier may not.
  EXPECT_EQ(admit(-5, alice).priority, 3);
  EXPECT_EQ(admit(8, alice).priority, 8);
  const auto asked = ParseCompletion(*ParseJson(R"({"prompt": [5], "priority": 7})"),
                                     *scripted_.text, testing::kScriptedContext);
  ASSERT_TRUE(asked.ok()) << asked.status();
  EXPECT_EQ(asked->requests[0].priority, 7);
  // Where nobody has a key, nobody has a limit.
  EXPECT_EQ(admit(-5, Client()).priority, -5);
}

}  // namespace
}  // namespace lockstep
