// The document at /openapi.json says what the server does: its routes, the fields that its parsers
// know, their bounds.
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <sstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/decode/sampling_params.h"
#include "runtime/serve/anthropic_request.h"
#include "runtime/serve/http_api.h"
#include "runtime/serve/openai_request.h"
#include "runtime/serve/responses_request.h"
#include "tests/runtime/http/client.h"
#include "tests/runtime/serve/scripted_engine.h"

namespace lockstep {
namespace {

using Json = nlohmann::json;
using Names = std::set<std::string>;

std::filesystem::path SourceDir() {
  const char* source = std::getenv("LOCKSTEP_SOURCE_DIR");
  return source == nullptr ? "." : source;
}

std::string ReadFile(const std::filesystem::path& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

// As a client gets it.
const Json& Document() {
  static const Json document = [] {
    const testing::ScriptedEngine scripted;
    auto api = StartHttpApi({}, {"tiny", testing::kScriptedContext, 2048, 4, 1}, *scripted.text,
                            nullptr, *scripted.engine);
    EXPECT_TRUE(api.ok()) << api.status();
    return Json::parse(testing::BodyOf(testing::Ask((*api)->port(), "GET", "/openapi.json")));
  }();
  return document;
}

const Json& Schema(const std::string& name) { return Document()["components"]["schemas"][name]; }

Names PropertiesOf(const std::string& schema) {
  Names names;
  for (const auto& [name, _] : Schema(schema)["properties"].items()) names.insert(name);
  return names;
}

// Every word in quotes in the sources that read requests: whatever a parser knows is among them.
Names WordsOfParsers() {
  Names words;
  for (const auto& entry : std::filesystem::directory_iterator(SourceDir() / "runtime/serve")) {
    if (entry.path().extension() != ".cc") continue;
    const std::string text = ReadFile(entry.path());
    const std::regex word("\"([a-z][a-z_0-9]*)\"");
    for (std::sregex_iterator at(text.begin(), text.end(), word), end; at != end; ++at)
      words.insert((*at)[1]);
  }
  return words;
}

using NotesOf = std::function<StatusOr<std::vector<std::string>>(const JsonValue&)>;

// What a parser knows of `candidates`: it has no note about it. Null counts as absent, so no value
// of a wrong kind stands in the way.
Names KnownOf(const Json& least, const Names& candidates, const NotesOf& notes_of) {
  Names known;
  for (const std::string& name : candidates) {
    Json body = least;
    if (!body.contains(name)) body[name] = nullptr;
    const auto notes = notes_of(ParseJson(body.dump(), kStrangersJson).value());
    EXPECT_TRUE(notes.ok()) << body << notes.status();
    bool unknown = false;
    for (const std::string& note : *notes)
      unknown |= note.find("'" + name + "' has no meaning") != std::string::npos;
    if (!unknown) known.insert(name);
  }
  return known;
}

TEST(OpenApiTest, HasTheRoutesOfTheServer) {
  Names described, served;
  for (const auto& [path, item] : Document()["paths"].items()) {
    for (const auto& [method, operation] : item.items()) {
      std::string name = method;
      std::transform(name.begin(), name.end(), name.begin(), ::toupper);
      const bool open = operation.contains("security") && operation["security"].empty();
      described.insert(name + " " + path + (open ? " open" : ""));
    }
  }
  for (const HttpRoute& route : HttpRoutes())
    served.insert(route.method + " " + route.path + (route.open ? " open" : ""));
  EXPECT_EQ(described, served);
}

TEST(OpenApiTest, HasTheFieldsThatParsersKnow) {
  const testing::ScriptedEngine scripted;
  const auto parsed = [&](auto parse) -> NotesOf {
    return [&, parse](const JsonValue& body) -> StatusOr<std::vector<std::string>> {
      LOCKSTEP_ASSIGN_OR_RETURN(const OpenAiRequest request, parse(body, *scripted.text, 512));
      return request.notes;
    };
  };
  const auto converted = [](auto to_chat) -> NotesOf {
    return [to_chat](const JsonValue& body) -> StatusOr<std::vector<std::string>> {
      std::vector<std::string> notes;
      LOCKSTEP_RETURN_IF_ERROR(to_chat(body, &notes).status());
      return notes;
    };
  };
  const Json messages = {{"messages", {{{"role", "user"}, {"content", "x"}}}}};
  Names candidates = WordsOfParsers();
  candidates.erase("extra_body");  // the log's own note
  EXPECT_GT(candidates.size(), 100u);
  const std::vector<std::tuple<std::string, Json, NotesOf>> cases = {
      {"ChatCompletionRequest", messages, parsed(ParseChatCompletion)},
      {"CompletionRequest", {{"prompt", "x"}}, parsed(ParseCompletion)},
      {"MessagesRequest", messages, converted(ChatFromMessages)},
      {"ResponsesRequest", {{"input", "x"}}, converted(ChatFromResponses)}};
  for (const auto& [schema, least, notes_of] : cases) {
    const Names described = PropertiesOf(schema);
    Names all = candidates;
    all.insert(described.begin(), described.end());
    EXPECT_EQ(described, KnownOf(least, all, notes_of)) << schema;
  }
  // These note nothing: at least no field is made up.
  for (const char* schema : {"DetokenizeRequest", "ApplyTemplateRequest"}) {
    for (const std::string& name : PropertiesOf(schema)) EXPECT_TRUE(candidates.contains(name));
  }
}

TEST(OpenApiTest, HasTheBoundsOfTheParsers) {
  for (const char* schema : {"ChatCompletionRequest", "CompletionRequest"}) {
    const Json& fields = Schema(schema)["properties"];
    EXPECT_EQ(fields["n"]["maximum"], kMaxChoices);
    EXPECT_EQ(fields["logit_bias"]["maxProperties"], kMaxLogitBias);
    EXPECT_EQ(fields["stop"]["anyOf"][0]["maxLength"], kMaxStopTextBytes);
    EXPECT_EQ(fields["stop"]["anyOf"][1]["maxItems"], kMaxStopTexts);
    EXPECT_EQ(fields["stop_token_ids"]["maxItems"], kMaxStopTokens);
  }
  const Json& chat = Schema("ChatCompletionRequest")["properties"];
  EXPECT_EQ(chat["messages"]["maxItems"], kMaxMessages);
  EXPECT_EQ(chat["tools"]["maxItems"], kMaxTools);
  EXPECT_EQ(chat["top_logprobs"]["maximum"], kMaxLogprobs);
}

TEST(OpenApiTest, ReferencesLeadSomewhere) {
  const std::string text = Document().dump();
  const std::regex reference("\"#(/[^\"]*)\"");
  size_t count = 0;
  for (std::sregex_iterator at(text.begin(), text.end(), reference), end; at != end; ++at, ++count)
    EXPECT_TRUE(Document().contains(Json::json_pointer((*at)[1]))) << (*at)[1];
  EXPECT_GT(count, 50u);
}

}  // namespace
}  // namespace lockstep
