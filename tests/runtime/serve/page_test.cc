// The page, and what it and others learn of the cluster.
#include "runtime/serve/page.h"

#include <openssl/evp.h>

#include <nlohmann/json.hpp>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/serve/api_keys.h"
#include "runtime/serve/cluster_json.h"
#include "runtime/serve/http_api.h"
#include "runtime/serve/metrics_text.h"
#include "tests/runtime/http/client.h"
#include "tests/runtime/serve/scripted_engine.h"
#include "tests/support/golden.h"
#include "tests/support/temporary.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;
using Json = nlohmann::json;
using testing::Ask;
using testing::BodyOf;
using testing::RawClient;
using testing::ScriptedEngine;

std::string Between(const std::string& text, const std::string& begin, const std::string& end) {
  const size_t at = text.find(begin) + begin.size();
  return text.substr(at, text.find(end, at) - at);
}

// Another way through the library than the page's own.
std::string DigestOf(const std::string& text) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int bytes = 0;
  EXPECT_EQ(EVP_Digest(text.data(), text.size(), digest, &bytes, EVP_sha256(), nullptr), 1);
  std::string base64;
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (unsigned int i = 0; i < bytes; i += 3) {
    const uint32_t word = static_cast<uint32_t>(digest[i]) << 16 |
                          static_cast<uint32_t>(i + 1 < bytes ? digest[i + 1] : 0) << 8 |
                          static_cast<uint32_t>(i + 2 < bytes ? digest[i + 2] : 0);
    for (unsigned int k = 0; k < 4; ++k)
      base64 += i + k > bytes ? '=' : kDigits[word >> (18 - 6 * k) & 63];
  }
  return base64;
}

class PageTest : public ::testing::Test {
 protected:
  void Start(const ApiKeys* keys, HttpApiOptions options = {}) {
    access_.emplace(keys);
    auto api = StartHttpApi(options, {"tiny", testing::kScriptedContext, 2048, 4, 1},
                            *scripted_.text, &*access_, *scripted_.engine);
    ASSERT_TRUE(api.ok()) << api.status();
    api_ = std::move(*api);
  }
  std::string Get(const std::string& target) { return Ask(api_->port(), "GET", target, ""); }
  std::string Raw(const std::string& request) {
    RawClient client(api_->port());
    client.Send(request);
    return client.ReadToEnd();
  }

  ScriptedEngine scripted_;
  std::optional<Access> access_;
  std::unique_ptr<HttpApi> api_;
};

TEST_F(PageTest, IsTheFileAndMayRunNothingElse) {
  Start(nullptr);
  const std::string file = testing::ReadAll(testing::SourcePath("runtime/serve/page/index.html"));
  const std::string answer = Get("/");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200"));
  EXPECT_EQ(BodyOf(answer), file);
  const std::string policy = Between(answer, "Content-Security-Policy: ", "\r\n");
  EXPECT_THAT(policy, StartsWith("default-src 'none'; "));
  EXPECT_THAT(policy, HasSubstr("script-src 'sha256-" +
                                DigestOf(Between(file, "<script>", "</script>")) + "';"));
  EXPECT_THAT(policy, HasSubstr("style-src 'sha256-" +
                                DigestOf(Between(file, "<style>", "</style>")) + "';"));
  EXPECT_THAT(policy, AllOf(HasSubstr("connect-src 'self';"), HasSubstr("frame-ancestors 'none'"),
                            HasSubstr("base-uri 'none'"), Not(HasSubstr("unsafe"))));
  EXPECT_THAT(answer, AllOf(HasSubstr("Content-Type: text/html; charset=utf-8\r\n"),
                            HasSubstr("X-Content-Type-Options: nosniff\r\n"),
                            HasSubstr("Referrer-Policy: no-referrer\r\n")));
  // Nothing that the policy would not let run, and nothing from elsewhere.
  EXPECT_THAT(file, Not(::testing::ContainsRegex("(src|href)=.https?:")));
  EXPECT_THAT(file, Not(::testing::ContainsRegex(" (style|on[a-z]+)=")));
  EXPECT_THAT(file, Not(HasSubstr("innerHTML")));
}

TEST_F(PageTest, WithoutKeysThePageIsForThisMachineAlone) {
  Start(nullptr);
  const std::string get = "GET / HTTP/1.1\r\nConnection: close\r\nHost: ";
  EXPECT_THAT(Raw(get + "localhost\r\n\r\n"), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(Raw(get + "evil.example\r\n\r\n"), StartsWith("HTTP/1.1 403"));
  EXPECT_THAT(Raw(get + "localhost\r\nOrigin: http://evil.example\r\n\r\n"),
              StartsWith("HTTP/1.1 403"));
}

TEST_F(PageTest, WithKeysThePageIsForAnyoneAndWhatItShowsIsNot) {
  const testing::TemporaryDirectory directory;
  // The SHA-256 of "secret".
  directory.Write("keys", "me 2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b\n");
  auto keys = ApiKeys::Load(directory.File("keys"));
  ASSERT_TRUE(keys.ok()) << keys.status();
  Start(keys->get());
  const std::string host = " HTTP/1.1\r\nConnection: close\r\nHost: cluster.example\r\n";
  EXPECT_THAT(Raw("GET /" + host + "\r\n"), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(Raw("GET /cluster" + host + "\r\n"), StartsWith("HTTP/1.1 401"));
  EXPECT_THAT(Raw("GET /cluster" + host + "x-api-key: secret\r\n\r\n"), StartsWith("HTTP/1.1 200"));
}

ClusterView SomeView() {
  ClusterView view;
  view.uptime = 12.5;
  view.load = {.waiting = 3, .running = 2, .kv_blocks_used = 100, .kv_blocks = 400, .steps = 9};
  view.generated = {40, 30, 20};
  view.prompt = {4, 3, 2};
  view.per_second = {10, 50};
  view.decode = DecodeTimes{
      .step = 0.02,
      .tokens = 2,
      .age = 1,
      .ranks =
          {{.compute = 0.010, .exchange = 0.008, .rest = 0.002},
           {.compute = 0.014, .exchange = 0.004, .rest = 0.002, .skew = 0.004, .read_bytes = 7e6}},
      .waited_for = 1};
  RankFacts zero, one;
  zero.info = {0, 11, "spark-1", "10.0.0.1"};
  zero.news.report = {.steps = 5, .kv_bytes = 4000, .threads = 8};
  one.info = {1, 12, "spark-\"2\"", "10.0.0.2"};
  one.news.report = {.steps = 5,
                     .compute_ns = 70'000'000,
                     .read_bytes = 35'000'000,
                     .memory_rate = 1'000'000'000,
                     .weight_bytes = 77,
                     .threads = 6};
  one.news.round_trip_ns = 84'000;
  one.news.silent_ns = 150'000'000;
  view.ranks = {zero, one};
  return view;
}

TEST_F(PageTest, TheClusterTellsTheFactsThatItIsGiven) {
  HttpApiOptions options;
  options.cluster = SomeView;
  Start(nullptr, options);
  const Json json = Json::parse(BodyOf(Get("/cluster")));
  EXPECT_EQ(json["model"], "tiny");
  EXPECT_EQ(json["ready"], true);
  EXPECT_EQ(json["error"], nullptr);
  EXPECT_EQ(json["requests"], Json({{"running", 2}, {"waiting", 3}, {"most_running", 4}}));
  EXPECT_EQ(json["kv"], Json({{"blocks", 400}, {"blocks_used", 100}, {"block_tokens", 16}}));
  EXPECT_EQ(json["tokens_per_s"], Json({{"now", 40.0}, {"minute", 30.0}, {"five_minutes", 20.0}}));
  EXPECT_EQ(json["history"]["tokens_per_s"], Json({10.0, 50.0}));
  EXPECT_EQ(json["decode"],
            Json({{"step_s", 0.02}, {"tokens_per_step", 2.0}, {"age_s", 1.0}, {"waited_for", 1}}));
  ASSERT_EQ(json["ranks"].size(), 2u);
  EXPECT_EQ(json["ranks"][0]["host"], "spark-1");
  EXPECT_EQ(json["ranks"][0]["round_trip_s"], nullptr);
  EXPECT_EQ(json["ranks"][0]["memory"]["kv_used_bytes"], 1000);
  EXPECT_EQ(json["ranks"][1]["pid"], 12);
  EXPECT_EQ(json["ranks"][1]["threads"], 6);
  EXPECT_DOUBLE_EQ(json["ranks"][1]["round_trip_s"], 84e-6);
  EXPECT_EQ(json["ranks"][1]["step"]["skew_s"], 0.004);
  EXPECT_EQ(json["ranks"][1]["step"]["read_bytes"], 7e6);
  EXPECT_EQ(json["ranks"][1]["memory_bytes_per_s"], 1'000'000'000);
  EXPECT_EQ(json["ranks"][0]["memory_bytes_per_s"], nullptr);
  const std::string metrics = BodyOf(Get("/metrics"));
  const std::string one = R"({model_name="tiny",rank="1",host="spark-\"2\""} )";
  EXPECT_THAT(metrics, HasSubstr("\nlockstep_rank_compute_seconds_total" + one + "0.07"));
  EXPECT_THAT(metrics, HasSubstr("\nlockstep_rank_skew_seconds" + one + "0.004"));
  EXPECT_THAT(metrics, HasSubstr("\nlockstep_rank_read_bytes_total" + one + "35000000\n"));
  EXPECT_THAT(metrics, HasSubstr("\nlockstep_rank_bandwidth_share" + one + "0.5\n"));
  EXPECT_THAT(metrics, HasSubstr("\nlockstep_link_round_trip_seconds" + one + "8.4"));
  EXPECT_THAT(metrics, HasSubstr("\nlockstep_rank_weight_bytes" + one + "77\n"));
  EXPECT_THAT(metrics,
              Not(HasSubstr("lockstep_link_round_trip_seconds{model_name=\"tiny\",rank=\"0\"")));
  // Every family of metrics says once what it is.
  for (size_t at = 0; (at = metrics.find("\n# TYPE ", at)) != std::string::npos; ++at) {
    const std::string name = Between(metrics.substr(at), "# TYPE ", " ");
    const std::string help = "# HELP " + name + " ";
    EXPECT_NE(metrics.find(help), std::string::npos) << name;
    EXPECT_EQ(metrics.find(help), metrics.rfind(help)) << name;
  }
}

TEST_F(PageTest, AClusterThatHasFailedSaysWhy) {
  HttpApiOptions options;
  options.cluster = [] {
    ClusterView view;
    view.readiness = PeerLostError("rank 1 (spark-2, pid 7) is gone");
    return view;
  };
  Start(nullptr, options);
  const Json json = Json::parse(BodyOf(Get("/cluster")));
  EXPECT_EQ(json["ready"], false);
  EXPECT_EQ(json["error"], "rank 1 (spark-2, pid 7) is gone");
  EXPECT_EQ(json["decode"], nullptr);
  EXPECT_EQ(json["ranks"], Json::array());
}

}  // namespace
}  // namespace lockstep
