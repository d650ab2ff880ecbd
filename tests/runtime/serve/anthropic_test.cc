// /v1/messages over an engine that says what a test wrote down.
#include <nlohmann/json.hpp>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/serve/anthropic_request.h"
#include "runtime/serve/http_api.h"
#include "tests/runtime/http/client.h"
#include "tests/runtime/serve/scripted_engine.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using Json = nlohmann::json;
using testing::Ask;
using testing::BodyOf;

constexpr char kWeather[] =
    R"([{"name": "weather", "description": "d", "input_schema": {"type": "object", "properties":
        {"city": {"type": "string"}, "days": {"type": "integer"}}}}])";

class MessagesTest : public ::testing::Test {
 protected:
  MessagesTest() {
    auto api = StartHttpApi({}, {"tiny", testing::kScriptedContext, 2048, 4, 1}, *scripted_.text,
                            nullptr, *scripted_.engine);
    EXPECT_TRUE(api.ok()) << api.status();
    api_ = std::move(*api);
  }
  static Json Question(Json more) {
    more["max_tokens"] = more.value("max_tokens", 100);
    if (!more.contains("messages"))
      more["messages"] = Json::array({{{"role", "user"}, {"content", "Hello"}}});
    return more;
  }
  std::string Post(const Json& body, const std::string& path = "/v1/messages") {
    return Ask(api_->port(), "POST", path, body.dump());
  }
  Json Whole(Json more) { return Json::parse(BodyOf(Post(Question(std::move(more))))); }

  // What a client makes of the events, which must come in the order that Anthropic's have.
  Json Streamed(Json more) {
    more["stream"] = true;
    std::string events = BodyOf(Post(Question(std::move(more))));
    Json message;
    bool open = false, stopped = false;
    while (!events.empty()) {
      const std::string event = events.substr(0, events.find("\n\n"));
      events.erase(0, event.size() + 2);
      const Json data = Json::parse(event.substr(event.find("\ndata: ") + 7));
      const std::string type = data["type"];
      EXPECT_THAT(event, StartsWith("event: " + type + "\n"));
      EXPECT_FALSE(stopped);
      if (type == "message_start") {
        EXPECT_TRUE(message.is_null());
        message = data["message"];
        EXPECT_EQ(message["content"], Json::array());
      } else if (type == "content_block_start") {
        EXPECT_FALSE(open);
        EXPECT_EQ(data["index"], message["content"].size());
        message["content"].push_back(data["content_block"]);
        open = true;
      } else if (type == "content_block_delta") {
        EXPECT_TRUE(open);
        EXPECT_EQ(data["index"], message["content"].size() - 1);
        Apply(data["delta"], &message["content"].back());
      } else if (type == "content_block_stop") {
        EXPECT_TRUE(open);
        open = false;
      } else if (type == "message_delta") {
        EXPECT_FALSE(open);
        message.update(data["delta"]);
        message["usage"] = data["usage"];
      } else if (type == "message_stop") {
        stopped = true;
      } else {
        EXPECT_EQ(type, "ping");
      }
    }
    EXPECT_TRUE(stopped);
    return message;
  }
  static void Apply(const Json& delta, Json* block) {
    const auto add = [&](const char* name) {
      (*block)[name] = (*block)[name].get<std::string>() + delta[name].get<std::string>();
    };
    if (delta["type"] == "text_delta") add("text");
    if (delta["type"] == "thinking_delta") add("thinking");
    if (delta["type"] == "signature_delta") (*block)["signature"] = delta["signature"];
    if (delta["type"] == "input_json_delta")
      (*block)["input"] = Json::parse(delta["partial_json"].get<std::string>());
  }

  testing::ScriptedEngine scripted_;
  std::unique_ptr<HttpApi> api_;
};

TEST_F(MessagesTest, ThinkingTextAndToolsAreBlocks) {
  scripted_.Say(
      "Where?</think>Looking.<tool_call>weather<arg_key>city</arg_key><arg_value>12</arg_value>"
      "<arg_key>days</arg_key><arg_value>3</arg_value></tool_call>");
  const Json body = {{"thinking", {{"type", "enabled"}, {"budget_tokens", 50}}},
                     {"tools", Json::parse(kWeather)}};
  const Json whole = Whole(body);
  EXPECT_EQ(whole["type"], "message");
  EXPECT_EQ(whole["role"], "assistant");
  ASSERT_EQ(whole["content"].size(), 3) << whole;
  EXPECT_EQ(whole["content"][0]["type"], "thinking");
  EXPECT_EQ(whole["content"][0]["thinking"], "Where?");
  EXPECT_EQ(whole["content"][1], Json({{"type", "text"}, {"text", "Looking."}}));
  EXPECT_EQ(whole["content"][2]["name"], "weather");
  EXPECT_EQ(whole["content"][2]["input"], Json({{"city", "12"}, {"days", 3}}));
  EXPECT_EQ(whole["stop_reason"], "tool_use");
  EXPECT_EQ(whole["usage"]["output_tokens"], scripted_.executor.script.size() + 1);
  // It can be given back as it is, with the tool's result.
  const Json next = Whole({{"tools", Json::parse(kWeather)},
                           {"messages",
                            {{{"role", "user"}, {"content", "Hello"}},
                             {{"role", "assistant"}, {"content", whole["content"]}},
                             {{"role", "user"},
                              {"content",
                               {{{"type", "tool_result"},
                                 {"tool_use_id", whole["content"][2]["id"]},
                                 {"content", {{{"type", "text"}, {"text", "sunny"}}}}},
                                {{"type", "text"}, {"text", "So?"}}}}}}}});
  EXPECT_EQ(next["type"], "message") << next;
}

TEST_F(MessagesTest, StreamsSayWhatWholeAnswersSay) {
  for (const char* reply :
       {"Think\n twice.</think>It's <b>fine</b> – naïve 🙂.",
        "A</think>B<tool_call>weather<arg_key>city</arg_key><arg_value>Paris</arg_value>"
        "</tool_call><tool_call>weather</tool_call>",
        "</think>", "never ends its thought"}) {
    scripted_.Say(reply);
    for (const char* thinking : {"enabled", "disabled"}) {
      const Json body = {{"tools", Json::parse(kWeather)}, {"thinking", {{"type", thinking}}}};
      Json whole = Whole(body), streamed = Streamed(body);
      for (Json* message : {&whole, &streamed}) {
        message->erase("id");
        message->erase("usage");  // the second finds the first one's prompt
        for (Json& block : (*message)["content"]) block.erase("id");
      }
      EXPECT_EQ(streamed, whole) << reply;
    }
  }
}

TEST_F(MessagesTest, WhyAnAnswerEndsIsSaid) {
  scripted_.Say("</think>one two three");
  EXPECT_EQ(Whole(Json::object())["stop_reason"], "end_turn");
  EXPECT_EQ(Whole({{"max_tokens", 2}})["stop_reason"], "max_tokens");
  const Json stopped = Streamed({{"stop_sequences", {"zzz", " two"}}});
  EXPECT_EQ(stopped["stop_reason"], "stop_sequence");
  EXPECT_EQ(stopped["stop_sequence"], " two");
}

// The prompt that the model gets is the chat's, whichever API it came by.
TEST_F(MessagesTest, PromptsAreThoseOfChats) {
  const Json body = Json::parse(R"({
    "model": "claude-opus-4", "max_tokens": 7, "top_k": 5,
    "system": [{"type": "text", "text": "x-anthropic-billing-header: cch=1"},
               {"type": "text", "text": "Be kind."}, {"type": "text", "text": "Be brief."}],
    "messages": [
      {"role": "user", "content": [
        {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]},
      {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "t", "signature": "s"}, {"type": "text", "text": "u"},
        {"type": "tool_use", "id": "1", "name": "f", "input": {"a": [1, null]}}]},
      {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "5"}]}],
    "tools": [{"name": "f", "input_schema": {"type": "object"}}],
    "stop_sequences": ["x"], "metadata": {"user_id": "me"}})");
  const Json chat = Json::parse(R"({
    "messages": [
      {"role": "system", "content": "Be kind.\nBe brief."},
      {"role": "user", "content": "Hi"},
      {"role": "assistant", "content": "u", "reasoning_content": "t", "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": [1, null]}}}]},
      {"role": "tool", "content": "5", "tool_call_id": "1"}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "thinking": {"type": "disabled"}})");
  const Json prompt = Json::parse(BodyOf(Post(chat, "/apply-template")))["prompt"];
  ASSERT_TRUE(prompt.is_string());
  const size_t tokens = scripted_.text->tokenizer->Encode(prompt.get<std::string>()).size();
  EXPECT_EQ(Json::parse(BodyOf(Post(body, "/v1/messages/count_tokens")))["input_tokens"], tokens);
  const auto parsed = ParseJson(body.dump());
  std::vector<std::string> notes;
  const auto made = ChatFromMessages(*parsed, &notes);
  ASSERT_TRUE(made.ok()) << made.status();
  const Json given = Json::parse(BodyOf(Post(Json::parse(made->Dump()), "/apply-template")));
  EXPECT_EQ(given["prompt"], prompt);
  EXPECT_EQ(notes,
            std::vector<std::string>{"system blocks that begin with x-anthropic- are left out"});
}

TEST_F(MessagesTest, WhatIsWrongIsNamedAsAnthropicDoes) {
  const std::vector<std::pair<Json, std::string>> cases = {
      {{{"messages", Json::array()}}, "messages is missing or empty"},
      {{{"messages", {5}}}, "messages[0] is an integer"},
      {{{"messages", {{{"role", "robot"}, {"content", "x"}}}}}, "messages[0].role is 'robot'"},
      {{{"messages", {{{"role", "user"}}}}}, "messages[0].content must be"},
      {{{"messages", {{{"role", "user"}, {"content", {{{"type", "image"}}}}}}}},
       "messages[0].content[0] is of type 'image'"},
      {{{"messages", {{{"role", "assistant"}, {"content", {{{"type", "tool_use"}}}}}}}},
       "messages[0].content[0].id is missing"},
      {{{"messages", {{{"role", "user"}, {"content", {{{"type", "tool_result"}}}}}}}},
       "tool_use_id is missing"},
      {{{"system", 5}}, "system is an integer"},
      {{{"tools", {{{"type", "web_search_20250305"}, {"name", "web_search"}}}}}, "input_schema"},
      {{{"thinking", {{"type", "maybe"}}}}, "thinking.type is 'maybe'"},
      {{{"max_tokens", 0}}, "max_tokens is 0"},
      {{{"stop_sequences", {1}}}, "stop holds an integer"},
  };
  for (const auto& [body, words] : cases) {
    const std::string answer = Post(Question(body));
    EXPECT_THAT(answer, StartsWith("HTTP/1.1 400")) << body;
    const Json error = Json::parse(BodyOf(answer));
    EXPECT_EQ(error["type"], "error");
    EXPECT_EQ(error["error"]["type"], "invalid_request_error");
    EXPECT_THAT(error["error"]["message"].get<std::string>(), HasSubstr(words));
  }
  EXPECT_THAT(Post(Question({{"model", "gpt-4"}})),
              AllOf(StartsWith("HTTP/1.1 404"), HasSubstr("not_found_error")));
  EXPECT_THAT(Ask(api_->port(), "GET", "/v1/messages"),
              AllOf(StartsWith("HTTP/1.1 405"), HasSubstr(R"("type":"error")")));
}

TEST_F(MessagesTest, AFailureIsAnEvent) {
  scripted_.Say("</think>a b c d e f g h");
  scripted_.executor.fail_at = scripted_.engine->load().steps + 6;
  scripted_.executor.step_ms = 5;
  const std::string answer = Post(Question({{"stream", true}}));
  EXPECT_THAT(answer, AllOf(HasSubstr("event: error\ndata: "), HasSubstr("rank 1 (spark-2")));
  EXPECT_THAT(Post(Question(Json::object())),
              AllOf(StartsWith("HTTP/1.1 503"), HasSubstr("overloaded_error")));
}

}  // namespace
}  // namespace lockstep
