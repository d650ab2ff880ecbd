// /v1/responses over an engine that says what a test wrote down.
#include <nlohmann/json.hpp>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/serve/http_api.h"
#include "runtime/serve/responses_request.h"
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
    R"([{"type": "function", "name": "weather", "parameters": {"type": "object", "properties":
        {"city": {"type": "string"}, "days": {"type": "integer"}}}}])";

class ResponsesTest : public ::testing::Test {
 protected:
  ResponsesTest() {
    auto api = StartHttpApi({}, {"tiny", testing::kScriptedContext, 2048, 4, 1}, *scripted_.text,
                            nullptr, *scripted_.engine);
    EXPECT_TRUE(api.ok()) << api.status();
    api_ = std::move(*api);
  }
  static Json Question(Json more) {
    if (!more.contains("input")) more["input"] = "Hello";
    return more;
  }
  std::string Post(const Json& body, const std::string& path = "/v1/responses") {
    return Ask(api_->port(), "POST", path, body.dump());
  }
  Json Whole(Json more) { return Json::parse(BodyOf(Post(Question(std::move(more))))); }

  // The last event's response, after all events before it were put together and compared with it.
  Json Streamed(Json more) {
    more["stream"] = true;
    std::string events = BodyOf(Post(Question(std::move(more))));
    Json built = Json::array(), last;
    for (int number = 0; !events.empty(); ++number) {
      const std::string event = events.substr(0, events.find("\n\n"));
      events.erase(0, event.size() + 2);
      const Json data = Json::parse(event.substr(event.find("\ndata: ") + 7));
      const std::string type = data["type"];
      EXPECT_THAT(event, StartsWith("event: " + type + "\n"));
      EXPECT_EQ(data["sequence_number"], number);
      if (data.contains("response")) last = data["response"];
      if (type == "response.output_item.added") {
        EXPECT_EQ(data["output_index"], built.size());
        built.push_back(data["item"]);
      } else if (data.contains("item_id")) {
        EXPECT_EQ(data["item_id"], built[data["output_index"].get<size_t>()]["id"]);
        Apply(data, &built.back());
      } else if (type == "response.output_item.done") {
        built.back()["status"] = data["item"]["status"];
        EXPECT_EQ(built.back(), data["item"]);
      }
    }
    EXPECT_EQ(last["output"], built);
    return last;
  }
  static void Apply(const Json& event, Json* item) {
    const std::string type = event["type"];
    if (type == "response.content_part.added") {
      (*item)["content"].push_back(event["part"]);
    } else if (type == "response.function_call_arguments.delta") {
      (*item)["arguments"] = event["delta"];
    } else if (type.ends_with(".delta")) {
      if ((*item)["content"].empty())
        (*item)["content"].push_back({{"type", "reasoning_text"}, {"text", ""}});
      Json& text = (*item)["content"][0]["text"];
      text = text.get<std::string>() + event["delta"].get<std::string>();
    } else if (type.ends_with("_text.done")) {
      EXPECT_EQ((*item)["content"][0]["text"], event["text"]);
    }
  }

  testing::ScriptedEngine scripted_;
  std::unique_ptr<HttpApi> api_;
};

TEST_F(ResponsesTest, StreamsSayWhatWholeAnswersSay) {
  for (const char* reply :
       {"Think\n twice.</think>It's <b>fine</b> – naïve 🙂.",
        "A</think>B<tool_call>weather<arg_key>city</arg_key><arg_value>12</arg_value><arg_key>days"
        "</arg_key><arg_value>3</arg_value></tool_call><tool_call>weather</tool_call>",
        "</think>", "never ends its thought"}) {
    scripted_.Say(reply);
    const Json body = {{"tools", Json::parse(kWeather)}};
    Json whole = Whole(body), streamed = Streamed(body);
    for (Json* response : {&whole, &streamed}) {
      EXPECT_EQ((*response)["status"], "completed");
      EXPECT_EQ((*response)["usage"]["output_tokens"], scripted_.executor.script.size() + 1);
      for (const char* name : {"id", "usage", "created_at"}) response->erase(name);
      for (Json& item : (*response)["output"]) {
        item.erase("id");
        item.erase("call_id");
      }
    }
    EXPECT_EQ(streamed, whole) << reply;
  }
}

TEST_F(ResponsesTest, OutputIsReasoningAMessageAndCalls) {
  scripted_.Say(
      "Where?</think>Looking.<tool_call>weather<arg_key>city</arg_key><arg_value>12</arg_value>"
      "</tool_call>");
  const Json output = Whole({{"tools", Json::parse(kWeather)}})["output"];
  ASSERT_EQ(output.size(), 3);
  EXPECT_EQ(output[0]["type"], "reasoning");
  EXPECT_EQ(output[0]["content"][0]["text"], "Where?");
  EXPECT_EQ(output[1]["content"][0]["text"], "Looking.");
  EXPECT_EQ(output[2]["name"], "weather");
  EXPECT_EQ(Json::parse(output[2]["arguments"].get<std::string>()), Json({{"city", "12"}}));
  // It can be given back as it is, with what the tool said.
  Json input = output;
  input.insert(input.begin(), Json::object({{"role", "user"}, {"content", "Hello"}}));
  input.push_back(
      {{"type", "function_call_output"}, {"call_id", output[2]["call_id"]}, {"output", "sunny"}});
  EXPECT_EQ(Whole({{"input", input}})["status"], "completed");
  const auto body = ParseJson(Json{{"input", input}, {"instructions", "Be kind."}}.dump());
  std::vector<std::string> notes;
  const auto chat = ChatFromResponses(*body, &notes);
  ASSERT_TRUE(chat.ok()) << chat.status();
  const Json messages = Json::parse(chat->Dump())["messages"];
  ASSERT_EQ(messages.size(), 4);
  EXPECT_EQ(messages[0], Json({{"role", "system"}, {"content", "Be kind."}}));
  EXPECT_EQ(messages[2]["reasoning_content"], "Where?");
  EXPECT_EQ(messages[2]["content"], "Looking.");
  EXPECT_EQ(messages[2]["tool_calls"].size(), 1);
  EXPECT_EQ(messages[3]["role"], "tool");
}

TEST_F(ResponsesTest, AnAnswerThatWasCutOffIsIncomplete) {
  scripted_.Say("</think>one two three");
  const Json cut = Streamed({{"max_output_tokens", 2}});
  EXPECT_EQ(cut["status"], "incomplete");
  EXPECT_EQ(cut["incomplete_details"]["reason"], "max_output_tokens");
  EXPECT_EQ(Whole({{"max_output_tokens", 2}})["status"], "incomplete");
}

TEST_F(ResponsesTest, WhatIsWrongIsNamed) {
  const std::vector<std::tuple<Json, int, std::string>> cases = {
      {{{"input", nullptr}}, 400, "input is missing"},
      {{{"input", 5}}, 400, "input is an integer"},
      {{{"input", {5}}}, 400, "input[0] is an integer"},
      {{{"input", {{{"type", "item_reference"}}}}}, 400, "input[0] is of type 'item_reference'"},
      {{{"input", {{{"role", "user"}}}}}, 400, "input[0].content is missing"},
      {{{"input", {{{"role", "user"}, {"content", {{{"type", "input_image"}}}}}}}},
       400,
       "input[0].content[0] is of type 'input_image'"},
      {{{"input", {{{"type", "function_call"}, {"call_id", "c"}}}}},
       400,
       "input[0].name is missing"},
      {{{"tools", {{{"type", "web_search"}}}}}, 400, "tools[0]"},
      {{{"reasoning", {{"effort", "huge"}}}}, 400, "reasoning_effort is 'huge'"},
      {{{"previous_response_id", "resp_1"}}, 400, "nothing is stored"},
      {{{"background", true}}, 400, "background"},
      {{{"text", {{"format", {{"type", "yaml"}}}}}}, 400, "response_format"},
  };
  for (const auto& [body, status, words] : cases) {
    EXPECT_THAT(Post(Question(body)),
                AllOf(StartsWith("HTTP/1.1 " + std::to_string(status)), HasSubstr(words)))
        << body;
  }
}

TEST_F(ResponsesTest, AFailureIsAResponse) {
  scripted_.Say("</think>a b c d e f g h");
  scripted_.executor.fail_at = scripted_.engine->load().steps + 6;
  scripted_.executor.step_ms = 5;
  const std::string answer = Post(Question({{"stream", true}}));
  EXPECT_THAT(answer, AllOf(HasSubstr("event: response.failed\n"), HasSubstr("rank 1 (spark-2")));
  EXPECT_THAT(Post(Question(Json::object())), StartsWith("HTTP/1.1 503"));
}

}  // namespace
}  // namespace lockstep
