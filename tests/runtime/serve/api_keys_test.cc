#include "runtime/serve/api_keys.h"

#include <chrono>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/serve/http_api.h"
#include "tests/runtime/http/client.h"
#include "tests/runtime/serve/scripted_engine.h"
#include "tests/support/temporary.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using testing::Ask;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using testing::TemporaryDirectory;

// Of "test" and "other", as sha256sum prints them.
constexpr char kTest[] = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
constexpr char kOther[] = "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa";

std::string NameOf(const ApiKeys& keys, std::string_view key) {
  const std::optional<Client> client = keys.Find(key);
  return client.has_value() ? client->name : "";
}

TEST(ApiKeysTest, LinesMayHaveLimits) {
  const TemporaryDirectory directory;
  directory.Write(
      "keys", std::string("alice ") + kTest +
                  " - requests=4 tokens-per-minute=60000  weight=2.5 priority=-3 # x\n" + "bob " +
                  kOther);
  const auto keys = ApiKeys::Load(directory.path() + "/keys");
  ASSERT_TRUE(keys.ok()) << keys.status();
  EXPECT_EQ((*keys)->Find("test")->limits, (ClientLimits{4, 60000, 2.5, -3}));
  EXPECT_EQ((*keys)->Find("other")->limits, ClientLimits());
  for (const char* wrong : {"requests=0", "requests=x", "requests=", "requests", "tokens=5",
                            "tokens-per-minute=-1", "weight=0", "weight=nan", "weight=1e9",
                            "priority=1.5", "priority=99999", "requests=99999999999999999999"}) {
    directory.Write("keys", std::string("bob ") + kOther + "\nalice " + kTest + " " + wrong);
    const auto refused = ApiKeys::Load(directory.path() + "/keys");
    EXPECT_THAT(MessageOf(refused.status()),
                AllOf(HasSubstr("keys:2: '" + std::string(wrong) + "'"), HasSubstr("requests=1")));
  }
  // A name is a client, with one set of limits.
  directory.Write("keys", std::string("a ") + kOther + " requests=2\na " + kTest + " requests=3");
  EXPECT_THAT(MessageOf(ApiKeys::Load(directory.path() + "/keys").status()), HasSubstr("keys:2:"));
}

TEST(ApiKeysTest, KeysAreKnownByTheirDigests) {
  const TemporaryDirectory directory;
  directory.Write("keys", std::string("# who\n\nalice ") + kTest + "  - x\n");
  const auto wrong = ApiKeys::Load(directory.path() + "/keys");
  EXPECT_THAT(MessageOf(wrong.status()), HasSubstr("keys:3:"));
  directory.Write(
      "keys", std::string("# who\n\n alice\t") + kTest + " # her laptop\nbob " + kOther + "  -\n");
  const auto keys = ApiKeys::Load(directory.path() + "/keys");
  ASSERT_TRUE(keys.ok()) << keys.status();
  EXPECT_EQ(NameOf(**keys, "test"), "alice");
  EXPECT_EQ(NameOf(**keys, "other"), "bob");
  EXPECT_EQ(NameOf(**keys, ""), "");
  EXPECT_EQ(NameOf(**keys, kTest), "");
}

TEST(ApiKeysTest, FilesThatCannotBeUsedAreNamed) {
  const TemporaryDirectory directory;
  for (const char* text :
       {"", "# nobody\n", "alice\n", "alice 1234\n",
        "alice e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n",
        "alice zz86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}) {
    directory.Write("keys", text);
    const auto keys = ApiKeys::Load(directory.path() + "/keys");
    ASSERT_FALSE(keys.ok()) << text;
    EXPECT_THAT(MessageOf(keys.status()), HasSubstr("/keys"));
  }
  EXPECT_FALSE(ApiKeys::Load(directory.path() + "/none").ok());
}

TEST(ApiKeysTest, AChangedFileIsReadAgain) {
  const TemporaryDirectory directory;
  directory.Write("keys", std::string("alice ") + kTest + "\n");
  const auto keys = ApiKeys::Load(directory.path() + "/keys");
  ASSERT_TRUE(keys.ok()) << keys.status();
  const auto wait_for = [&](const std::string& key, const std::string& name) {
    for (int i = 0; i < 100 && NameOf(**keys, key) != name; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    EXPECT_EQ(NameOf(**keys, key), name);
  };
  directory.Write("keys", std::string("bob ") + kOther + "\n");
  wait_for("other", "bob");
  EXPECT_EQ(NameOf(**keys, "test"), "");
  // A slip of the pen locks nobody out.
  directory.Write("keys", "bob");
  std::this_thread::sleep_for(std::chrono::milliseconds(1200));
  EXPECT_EQ(NameOf(**keys, "other"), "bob");
}

TEST(ApiKeysTest, EveryRouteButLivenessAndReadinessAsksForAKey) {
  const TemporaryDirectory directory;
  directory.Write("keys", std::string("alice ") + kTest + "\n");
  const auto keys = ApiKeys::Load(directory.path() + "/keys");
  ASSERT_TRUE(keys.ok()) << keys.status();
  Access access(keys->get());
  testing::ScriptedEngine scripted;
  const auto api = StartHttpApi({}, {"tiny", testing::kScriptedContext, 2048, 4, 1}, *scripted.text,
                                &access, *scripted.engine);
  ASSERT_TRUE(api.ok()) << api.status();
  const int port = (*api)->port();
  for (const std::string& path :
       std::vector<std::string>{"/v1/models", "/metrics", "/health", "/version", "/nothing",
                                "/cluster", "/openapi.json"}) {
    EXPECT_THAT(Ask(port, "GET", path),
                AllOf(StartsWith("HTTP/1.1 401"), HasSubstr("authentication_error")));
    for (const std::string& wrong :
         {"Authorization: Bearer tes\r\n", "Authorization: Basic dGVzdA==\r\n",
          "Authorization: test\r\n", "x-api-key: Test\r\n"}) {
      EXPECT_THAT(Ask(port, "GET", path, "", wrong), StartsWith("HTTP/1.1 401")) << wrong;
    }
  }
  EXPECT_THAT(Ask(port, "POST", "/v1/chat/completions", "{}"), StartsWith("HTTP/1.1 401"));
  EXPECT_THAT(Ask(port, "GET", "/health/live"), StartsWith("HTTP/1.1 200"));
  for (const std::string& right :
       {"Authorization: Bearer test\r\n", "Authorization: bearer test\r\n", "X-Api-Key: test\r\n"})
    EXPECT_THAT(Ask(port, "GET", "/v1/models", "", right), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(Ask(port, "GET", "/nothing", "", "x-api-key: test\r\n"), StartsWith("HTTP/1.1 404"));
}

}  // namespace
}  // namespace lockstep
