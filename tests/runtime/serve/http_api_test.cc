// The HTTP end over an engine that says what a test wrote down.
#include "runtime/serve/http_api.h"

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/http/client.h"
#include "tests/runtime/serve/scripted_engine.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;
using Json = nlohmann::json;
using testing::Ask;
using testing::BodyOf;
using testing::RawClient;
using testing::ScriptedEngine;

constexpr char kWeather[] =
    R"([{"type": "function", "function": {"name": "weather", "parameters": {"type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}}])";

class HttpApiTest : public ::testing::Test {
 protected:
  void Start(int64_t max_queue = 256) {
    scripted_ = std::make_unique<ScriptedEngine>(max_queue);
    auto api = StartHttpApi({}, {"tiny", testing::kScriptedContext, 2048, 4, 1}, *scripted_->text,
                            nullptr, *scripted_->engine);
    ASSERT_TRUE(api.ok()) << api.status();
    api_ = std::move(*api);
  }
  void TearDown() override { api_.reset(); }

  std::string Post(const std::string& target, const Json& body) {
    return Ask(api_->port(), "POST", target, body.dump());
  }
  Json Chat(Json body) {
    if (!body.contains("messages")) body["messages"] = {{{"role", "user"}, {"content", "Hello"}}};
    return Json::parse(BodyOf(Post("/v1/chat/completions", body)));
  }
  // The events of a stream; [DONE] is checked and left out.
  std::vector<Json> Stream(const std::string& target, Json body, bool done = true) {
    body["stream"] = true;
    if (target == "/v1/chat/completions" && !body.contains("messages"))
      body["messages"] = {{{"role", "user"}, {"content", "Hello"}}};
    const std::string answer = Post(target, body);
    EXPECT_THAT(answer, HasSubstr("Content-Type: text/event-stream"));
    std::string events = BodyOf(answer);
    EXPECT_EQ(events.ends_with("data: [DONE]\n\n"), done) << events;
    std::vector<Json> parsed;
    while (!events.empty()) {
      const std::string event = events.substr(0, events.find("\n\n"));
      events.erase(0, event.size() + 2);
      EXPECT_THAT(event, StartsWith("data: "));
      if (event != "data: [DONE]") parsed.push_back(Json::parse(event.substr(6)));
    }
    return parsed;
  }
  // What a client makes of a stream: the message of one choice.
  static Json Joined(const std::vector<Json>& events, int index = 0) {
    Json message = {{"content", ""}, {"reasoning_content", ""}, {"tool_calls", Json::array()}};
    for (const Json& event : events) {
      for (const Json& choice : event["choices"]) {
        if (choice["index"] != index) continue;
        const Json& delta = choice["delta"];
        if (delta.contains("role")) message["role"] = delta["role"];
        for (const char* key : {"content", "reasoning_content"}) {
          if (delta.contains(key))
            message[key] = message[key].get<std::string>() + delta[key].get<std::string>();
        }
        for (const Json& call : delta.value("tool_calls", Json::array()))
          message["tool_calls"].push_back(call);
        if (!choice["finish_reason"].is_null()) message["finish"] = choice["finish_reason"];
      }
    }
    return message;
  }

  std::unique_ptr<ScriptedEngine> scripted_;
  std::unique_ptr<HttpApi> api_;
};

TEST_F(HttpApiTest, AChatAnswerHasReasoningAndContentApart) {
  Start();
  scripted_->Say("Let me think.</think>Paris.");
  const Json answer = Chat({{"model", "tiny"}});
  EXPECT_EQ(answer["object"], "chat.completion");
  EXPECT_EQ(answer["model"], "tiny");
  EXPECT_THAT(answer["id"].get<std::string>(), StartsWith("chatcmpl-"));
  const Json& choice = answer["choices"][0];
  EXPECT_EQ(
      choice["message"],
      Json({{"role", "assistant"}, {"content", "Paris."}, {"reasoning_content", "Let me think."}}));
  EXPECT_EQ(choice["finish_reason"], "stop");
  const Json& usage = answer["usage"];
  const auto tokens = static_cast<int64_t>(scripted_->executor.script.size()) + 1;  // the end token
  EXPECT_EQ(usage["completion_tokens"], tokens);
  EXPECT_EQ(usage["total_tokens"], usage["prompt_tokens"].get<int64_t>() + tokens);
  const auto& script = scripted_->executor.script;
  const auto end =
      std::find(script.begin(), script.end(), *scripted_->text->tokenizer->IdOf("</think>"));
  EXPECT_EQ(usage["completion_tokens_details"]["reasoning_tokens"], end - script.begin() + 1);
}

// Whatever is asked, a stream says the same as one answer.
TEST_F(HttpApiTest, StreamsSayWhatWholeAnswersSay) {
  Start();
  for (const char* reply :
       {"Think\n twice.</think>It's <b>fine</b> – naïve 🙂.",
        "Need it.</think>Looking.<tool_call>weather<arg_key>city</arg_key><arg_value>Paris"
        "</arg_value><arg_key>days</arg_key><arg_value>3</arg_value></tool_call><tool_call>weather"
        "</tool_call>",
        "In thought <tool_call>weather<arg_key>city</arg_key><arg_value>12</arg_value></tool_call>",
        "never ends its thought", "</think>", "</think><tool_call>cut off<arg_key>a"}) {
    scripted_->Say(reply);
    for (const bool thinking : {true, false}) {
      const Json body = {{"tools", Json::parse(kWeather)},
                         {"thinking", {{"type", thinking ? "enabled" : "disabled"}}}};
      const Json whole = Chat(body);
      const std::vector<Json> events = Stream("/v1/chat/completions", body);
      const Json joined = Joined(events);
      const Json& message = whole["choices"][0]["message"];
      EXPECT_EQ(joined["role"], "assistant");
      EXPECT_EQ(joined["content"], message["content"].is_null() ? Json("") : message["content"]);
      EXPECT_EQ(joined["reasoning_content"], message.value("reasoning_content", ""));
      const Json calls = message.value("tool_calls", Json::array());
      ASSERT_EQ(joined["tool_calls"].size(), calls.size()) << reply;
      for (size_t i = 0; i < calls.size(); ++i) {
        EXPECT_EQ(joined["tool_calls"][i]["index"], i);
        EXPECT_EQ(joined["tool_calls"][i]["function"], calls[i]["function"]);
      }
      EXPECT_EQ(joined["finish"], whole["choices"][0]["finish_reason"]);
      // The first event is the role's alone.
      EXPECT_EQ(events[0]["choices"][0]["delta"], Json({{"role", "assistant"}, {"content", ""}}));
    }
  }
}

TEST_F(HttpApiTest, ToolCallsAreWholeAndTyped) {
  Start();
  scripted_->Say(
      "</think><tool_call>weather<arg_key>city</arg_key><arg_value>12</arg_value><arg_key>days"
      "</arg_key><arg_value>3</arg_value></tool_call>");
  const Json answer = Chat({{"tools", Json::parse(kWeather)}});
  const Json& choice = answer["choices"][0];
  EXPECT_EQ(choice["finish_reason"], "tool_calls");
  EXPECT_TRUE(choice["message"]["content"].is_null());
  const Json& call = choice["message"]["tool_calls"][0];
  EXPECT_EQ(call["type"], "function");
  EXPECT_THAT(call["id"].get<std::string>(), StartsWith("call_"));
  EXPECT_EQ(call["function"]["name"], "weather");
  EXPECT_EQ(Json::parse(call["function"]["arguments"].get<std::string>()),
            Json({{"city", "12"}, {"days", 3}}));
  // A client may send that message back as it is.
  EXPECT_EQ(Chat({{"messages",
                   {{{"role", "user"}, {"content", "Hi"}},
                    choice["message"],
                    {{"role", "tool"},
                     {"tool_call_id", call["id"]},
                     {"content", {{{"type", "text"}, {"text", "sunny"}}}}}}}})["object"],
            "chat.completion");
}

TEST_F(HttpApiTest, UsageAndLogProbabilitiesComeWhenAskedFor) {
  Start();
  scripted_->Say("</think>Yes.");
  const std::vector<Json> events = Stream(
      "/v1/chat/completions",
      {{"stream_options", {{"include_usage", true}}}, {"logprobs", true}, {"top_logprobs", 2}});
  EXPECT_EQ(events.back()["choices"], Json::array());
  EXPECT_EQ(events.back()["usage"]["completion_tokens"], scripted_->executor.script.size() + 1);
  EXPECT_GE(events.back()["timings"]["queue_ms"], 0);
  size_t tokens = 0;
  for (const Json& event : events) {
    EXPECT_EQ(event["usage"].is_null(), &event != &events.back());
    for (const Json& choice : event["choices"]) {
      if (choice["logprobs"].is_null()) continue;
      for (const Json& entry : choice["logprobs"]["content"]) {
        ++tokens;
        EXPECT_EQ(entry["logprob"], -0.5);
        EXPECT_EQ(entry["top_logprobs"].size(), 2);
      }
    }
  }
  EXPECT_EQ(tokens, scripted_->executor.script.size() + 1);
  const Json whole = Chat({{"logprobs", true}});
  EXPECT_EQ(whole["choices"][0]["logprobs"]["content"].size(), tokens);
  EXPECT_THAT(Post("/v1/chat/completions",
                   {{"messages", {{{"role", "user"}, {"content", "x"}}}}, {"top_logprobs", 2}}),
              AllOf(StartsWith("HTTP/1.1 400"), HasSubstr("top_logprobs")));
}

TEST_F(HttpApiTest, SeveralChoicesAndPrompts) {
  Start();
  scripted_->Say("</think>Same.");
  const Json chat = Chat({{"n", 3}});
  ASSERT_EQ(chat["choices"].size(), 3);
  EXPECT_EQ(chat["choices"][2]["index"], 2);
  EXPECT_EQ(Joined(Stream("/v1/chat/completions", {{"n", 2}}), 1)["content"], "Same.");
  const Json one = Json::parse(BodyOf(Post("/v1/completions", {{"prompt", "A"}})));
  const Json both =
      Json::parse(BodyOf(Post("/v1/completions", {{"prompt", {"A", "B C"}}, {"n", 2}})));
  ASSERT_EQ(both["choices"].size(), 4);
  EXPECT_EQ(both["object"], "text_completion");
  EXPECT_EQ(both["choices"][3]["text"], "</think>Same.");
  EXPECT_EQ(one["usage"]["prompt_tokens"], 1);
  EXPECT_EQ(both["usage"]["prompt_tokens"], 1 + scripted_->text->tokenizer->Encode("B C").size());
  const Json ids = Json::parse(
      BodyOf(Post("/v1/completions", {{"prompt", {1, 2, 3}}, {"max_tokens", 2}, {"logprobs", 1}})));
  EXPECT_EQ(ids["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(ids["usage"]["prompt_tokens"], 3);
  EXPECT_EQ(ids["choices"][0]["logprobs"]["tokens"].size(), 2);
}

TEST_F(HttpApiTest, StopStringsEndAnswers) {
  Start();
  scripted_->Say("</think>one two three");
  EXPECT_EQ(Chat({{"stop", " two"}})["choices"][0]["message"]["content"], "one");
  EXPECT_EQ(Chat({{"stop", {"zzz", "three"}}})["choices"][0]["message"]["content"], "one two ");
  EXPECT_EQ(Joined(Stream("/v1/chat/completions", {{"stop", " two"}}))["content"], "one");
}

TEST_F(HttpApiTest, WhatIsWrongIsNamed) {
  Start();
  const Json messages = {{{"role", "user"}, {"content", "x"}}};
  const std::vector<std::pair<Json, std::string>> cases = {
      {Json::array(), "must be an object"},
      {{{"x", 1}}, "messages is missing"},
      {{{"messages", "hi"}}, "messages is a string, but must be an array"},
      {{{"messages", Json::array()}}, "messages is missing or empty"},
      {{{"messages", {{{"content", "x"}}}}}, "messages[0].role is missing"},
      {{{"messages", {{{"role", "robot"}, {"content", "x"}}}}}, "messages[0].role is 'robot'"},
      {{{"messages", {{{"role", "user"}}}}}, "messages[0].content is missing"},
      {{{"messages", {{{"role", "user"}, {"content", 5}}}}}, "messages[0].content is an integer"},
      {{{"messages",
         {{{"role", "user"},
           {"content", {{{"type", "image_url"}, {"image_url", {{"url", "x"}}}}}}}}}},
       "this model reads text only"},
      {{{"messages", messages}, {"temperature", "hot"}}, "temperature is a string"},
      {{{"messages", messages}, {"temperature", -1}}, "temperature"},
      {{{"messages", messages}, {"temperature", 1e300}}, "temperature"},
      {{{"messages", messages}, {"top_p", 0}}, "top_p"},
      {{{"messages", messages}, {"max_tokens", 0}}, "max_tokens is 0"},
      {{{"messages", messages}, {"max_tokens", 1e30}}, "max_tokens"},
      {{{"messages", messages}, {"max_tokens", 2.5}}, "max_tokens"},
      {{{"messages", messages}, {"n", 17}}, "n is 17"},
      {{{"messages", messages}, {"stop", std::vector<std::string>(10'000, "s")}}, "stop has 10000"},
      {{{"messages", messages}, {"stop", {1}}}, "stop holds an integer"},
      {{{"messages", messages}, {"stop", {""}}}, "stop"},
      {{{"messages", messages}, {"logit_bias", {{"abc", 1}}}}, "logit_bias has the key 'abc'"},
      {{{"messages", messages}, {"logit_bias", {{"5", 1000}}}}, "logit_bias"},
      {{{"messages", messages}, {"stream", "yes"}}, "stream is a string"},
      {{{"messages", messages}, {"thinking", {{"type", "maybe"}}}}, "thinking.type is 'maybe'"},
      {{{"messages", messages}, {"thinking_budget", -2}}, "thinking_budget"},
      {{{"messages", messages}, {"thinking", {{"budget_tokens", "9"}}}}, "thinking.budget_tokens"},
      {{{"messages", messages}, {"reasoning_effort", "huge"}}, "reasoning_effort is 'huge'"},
      {{{"messages", messages}, {"tools", {{{"type", "function"}}}}}, "tools[0]"},
      {{{"messages",
         {{{"role", "assistant"},
           {"content", ""},
           {"tool_calls", {{{"function", {{"name", "f"}, {"arguments", "{not json"}}}}}}}}}},
       "not JSON"},
  };
  for (const auto& [body, words] : cases) {
    const std::string answer = Post("/v1/chat/completions", body);
    EXPECT_THAT(answer, StartsWith("HTTP/1.1 400")) << body;
    const Json error = Json::parse(BodyOf(answer))["error"];
    EXPECT_THAT(error["message"].get<std::string>(), HasSubstr(words));
    EXPECT_EQ(error["type"], "invalid_request_error");
  }
  EXPECT_EQ(scripted_->engine->load().waiting + scripted_->engine->load().running, 0);
}

TEST_F(HttpApiTest, BodiesThatAreNoJsonAreNamed) {
  Start();
  for (const std::string& body :
       {std::string("{"), std::string("{\"messages\": \"\xff\"}"), std::string(5000, '['),
        std::string("{\"a\": 1e999999}"), std::string("null")}) {
    const std::string answer = Ask(api_->port(), "POST", "/v1/chat/completions", body);
    EXPECT_THAT(answer, StartsWith("HTTP/1.1 400")) << body.substr(0, 40);
    EXPECT_TRUE(Json::parse(BodyOf(answer)).contains("error"));
  }
  // A few bytes each, a lot of memory together.
  std::string many = "{\"a\": [";
  for (int i = 0; i < 1'100'000; ++i) many += "0,";
  EXPECT_THAT(Ask(api_->port(), "POST", "/v1/chat/completions", many + "0]}"),
              HasSubstr("more than"));
}

TEST_F(HttpApiTest, WhatCannotBeKeptIsSaid) {
  Start();
  const Json messages = {{{"role", "user"}, {"content", "x"}}};
  for (const Json& more :
       {Json{{"response_format", {{"type", "yaml"}}}}, Json{{"tool_choice", "required"}},
        Json{{"tool_choice", {{"type", "function"}, {"function", {{"name", "f"}}}}}}}) {
    Json body = more;
    body["messages"] = messages;
    EXPECT_THAT(Post("/v1/chat/completions", body),
                AllOf(StartsWith("HTTP/1.1 400"),
                      HasSubstr(more.contains("response_format") ? "response_format.type is 'yaml'"
                                                                 : "tool_choice demands a call")));
  }
  // The engine of this test keeps no grammars.
  EXPECT_THAT(Post("/v1/chat/completions",
                   {{"messages", messages}, {"response_format", {{"type", "json_object"}}}}),
              AllOf(StartsWith("HTTP/1.1 400"), HasSubstr("deploy/install_xgrammar.sh")));
  EXPECT_THAT(Post("/v1/completions", {{"prompt", "x"}, {"echo", true}}),
              StartsWith("HTTP/1.1 400"));
}

TEST_F(HttpApiTest, ContextsAndQueuesAreBounded) {
  Start(1);
  for (const Json& prompt : {Json(std::vector<int>(600, 5)), Json(std::string(2'000'000, 'x'))}) {
    const std::string answer = Post("/v1/completions", {{"prompt", prompt}, {"max_tokens", 1}});
    EXPECT_THAT(answer, StartsWith("HTTP/1.1 400"));
    EXPECT_EQ(Json::parse(BodyOf(answer))["error"]["code"], "context_length_exceeded");
  }
  scripted_->executor.step_ms = 20;
  scripted_->executor.script.assign(400, 5);
  // Four run, one waits, and the next is told to come again.
  std::vector<std::unique_ptr<RawClient>> clients;
  std::string last;
  const std::string body = R"({"prompt": "x", "max_tokens": 400, "stream": true})";
  for (int i = 0; i < 8 && !last.starts_with("HTTP/1.1 429"); ++i) {
    clients.push_back(std::make_unique<RawClient>(api_->port()));
    clients.back()->Send("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: " +
                         std::to_string(body.size()) + "\r\n\r\n" + body);
    last = clients.back()->ReadUntil("\r\n\r\n");
    std::this_thread::sleep_for(std::chrono::milliseconds(60));
  }
  EXPECT_THAT(last, AllOf(StartsWith("HTTP/1.1 429"), HasSubstr("Retry-After: 1")));
  EXPECT_GE(clients.size(), 5u);
  // Who hangs up makes room.
  clients.clear();
  for (int i = 0; i < 500 && scripted_->engine->load().running > 0; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(scripted_->engine->load().running, 0);
}

TEST_F(HttpApiTest, AFailureInMidStreamIsAnEventAndWithoutAStreamAStatus) {
  Start();
  scripted_->Say("</think>a b c d e f g h");
  scripted_->executor.fail_at = scripted_->engine->load().steps + 6;
  scripted_->executor.step_ms = 5;
  const std::vector<Json> events = Stream("/v1/chat/completions", Json::object(), false);
  EXPECT_THAT(events.back()["error"]["message"].get<std::string>(), HasSubstr("rank 1 (spark-2"));
  EXPECT_THAT(
      Post("/v1/chat/completions", {{"messages", {{{"role", "user"}, {"content", "x"}}}}}),
      AllOf(StartsWith("HTTP/1.1 503"), HasSubstr("rank 1 (spark-2"), HasSubstr("Retry-After")));
  EXPECT_THAT(Ask(api_->port(), "GET", "/health"), StartsWith("HTTP/1.1 503"));
  EXPECT_THAT(Ask(api_->port(), "GET", "/health/ready"),
              AllOf(StartsWith("HTTP/1.1 503"), Not(HasSubstr("spark-2"))));
  EXPECT_THAT(Ask(api_->port(), "GET", "/health/live"), StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpApiTest, ReadyMeansThatStepsEnd) {
  Start();
  std::string ready;
  for (int i = 0; i < 200 && !ready.starts_with("HTTP/1.1 200"); ++i) {
    ready = Ask(api_->port(), "GET", "/health/ready");
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  // Nobody asked for anything: a step without rows was made.
  EXPECT_THAT(ready, StartsWith("HTTP/1.1 200"));
  EXPECT_GE(scripted_->engine->load().steps, 1u);
  EXPECT_EQ(scripted_->executor.rows, 0);
  scripted_->engine->Drain(0);
  EXPECT_THAT(Ask(api_->port(), "GET", "/health/ready"), StartsWith("HTTP/1.1 503"));
}

TEST_F(HttpApiTest, SmallRoutes) {
  Start();
  const Json models = Json::parse(BodyOf(Ask(api_->port(), "GET", "/v1/models?x=1")));
  EXPECT_EQ(models["data"][0]["id"], "tiny");
  EXPECT_EQ(models["data"][0]["max_model_len"], testing::kScriptedContext);
  EXPECT_GT(models["data"][0]["vocab_size"], 0);
  EXPECT_THAT(
      Post("/v1/chat/completions",
           {{"model", "gpt-4"}, {"messages", {{{"role", "user"}, {"content", "x"}}}}}),
      AllOf(StartsWith("HTTP/1.1 404"), HasSubstr("'tiny' does"), HasSubstr("model_not_found")));
  EXPECT_THAT(Ask(api_->port(), "GET", "/v1/chat/completions"),
              AllOf(StartsWith("HTTP/1.1 405"), HasSubstr("Allow: POST")));
  EXPECT_THAT(Ask(api_->port(), "GET", "/nothing"), StartsWith("HTTP/1.1 404"));
  EXPECT_THAT(Ask(api_->port(), "HEAD", "/v1/models"), StartsWith("HTTP/1.1 200"));
  const std::vector<int32_t> ids = scripted_->text->tokenizer->Encode("Hello <|user|>");
  for (const char* key : {"prompt", "content"}) {
    const Json tokens = Json::parse(BodyOf(Post("/tokenize", {{key, "Hello <|user|>"}})));
    EXPECT_EQ(tokens["tokens"].get<std::vector<int32_t>>(), ids);
  }
  const Json text = Json::parse(BodyOf(Post("/detokenize", {{"tokens", ids}})));
  EXPECT_EQ(text["prompt"], "Hello <|user|>");
  EXPECT_THAT(Post("/detokenize", {{"tokens", {99999}}}), StartsWith("HTTP/1.1 400"));
  const Json prompt = Json::parse(
      BodyOf(Post("/apply-template", {{"messages", {{{"role", "user"}, {"content", "Hi"}}}},
                                      {"chat_template_kwargs", {{"enable_thinking", false}}}})));
  EXPECT_EQ(prompt["prompt"], "[gMASK]<sop><|user|>Hi<|assistant|></think>");
}

TEST_F(HttpApiTest, FieldsOfOtherServersAreTaken) {
  Start();
  scripted_->Say("Hm.</think>Yes.");
  const auto prompt_tokens = [&](const Json& more) {
    Json body = more;
    body["messages"] = {{{"role", "user"}, {"content", "x"}}};
    const Json answer = Chat(body);
    EXPECT_TRUE(answer.contains("usage")) << answer;
    return answer["choices"][0]["message"].contains("reasoning_content");
  };
  // With thinking off, the reply begins as content: "Hm.</think>Yes." has no reasoning.
  EXPECT_TRUE(prompt_tokens({}));
  for (const Json& off :
       {Json{{"thinking", {{"type", "disabled"}}}}, Json{{"reasoning_effort", "none"}},
        Json{{"chat_template_kwargs", {{"enable_thinking", false}}}},
        Json{{"extra_body", {{"thinking", {{"type", "disabled"}}}}}},
        Json{{"enable_thinking", false}, {"unheard_of", 1}}}) {
    EXPECT_FALSE(prompt_tokens(off)) << off;
  }
  EXPECT_TRUE(prompt_tokens({{"max_completion_tokens", 5.0},
                             {"user", "u"},
                             {"top_k", -1},
                             {"seed", -3},
                             {"do_sample", false},
                             {"stream_options", nullptr}}));
}

TEST_F(HttpApiTest, MetricsCount) {
  Start();
  scripted_->Say("</think>Yes.");
  Chat(Json::object());
  const std::string metrics = BodyOf(Ask(api_->port(), "GET", "/metrics"));
  EXPECT_THAT(metrics,
              AllOf(HasSubstr("vllm:request_success_total{model_name=\"tiny\",finished_reason="
                              "\"stop\"} 1\n"),
                    HasSubstr("vllm:generation_tokens_total{model_name=\"tiny\"} " +
                              std::to_string(scripted_->executor.script.size() + 1) + "\n"),
                    HasSubstr("vllm:time_to_first_token_seconds_count{model_name=\"tiny\"} 1\n"),
                    HasSubstr("vllm:time_to_first_token_seconds_bucket{model_name=\"tiny\",le="
                              "\"+Inf\"} 1\n")));
}

TEST_F(HttpApiTest, WithoutKeysOnlyLocalNamesAreAnsweredAndNoPageOfAnotherSite) {
  Start();
  const auto ask = [&](const std::string& host, const std::string& more) {
    RawClient client(api_->port());
    client.Send("GET /v1/models HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n" + more +
                "\r\n");
    return client.ReadToEnd().substr(0, 12);
  };
  for (const char* host : {"localhost", "localhost:8000", "127.0.0.2", "[::1]:8000"})
    EXPECT_EQ(ask(host, ""), "HTTP/1.1 200") << host;
  for (const char* host : {"evil.example", "127.0.0.1.evil.example", "", "[::2]"})
    EXPECT_EQ(ask(host, ""), "HTTP/1.1 403") << host;
  EXPECT_EQ(ask("localhost", "Origin: http://localhost:3000\r\n"), "HTTP/1.1 200");
  for (const char* origin : {"https://evil.example", "null", "localhost"})
    EXPECT_EQ(ask("localhost", std::string("Origin: ") + origin + "\r\n"), "HTTP/1.1 403")
        << origin;
}

TEST_F(HttpApiTest, StrangersGetNothingKeptForThem) {
  Start();
  RawClient client(api_->port());
  client.Send("GET /health/live HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n");
  // Answered before the body, and closed.
  EXPECT_THAT(client.ReadToEnd(),
              AllOf(StartsWith("HTTP/1.1 200"), HasSubstr("Connection: close")));
}

TEST_F(HttpApiTest, ManyFieldsAreRefusedAtOnce) {
  Start();
  std::string many = R"({"extra_body": {}, "messages": [{"role": "user", "content": "x"}])";
  for (int i = 0; i < 300'000; ++i) many += ",\"f" + std::to_string(i) + "\":0";
  EXPECT_THAT(Ask(api_->port(), "POST", "/v1/chat/completions", many + "}"),
              AllOf(StartsWith("HTTP/1.1 400"), HasSubstr("fields")));
}

}  // namespace
}  // namespace lockstep
