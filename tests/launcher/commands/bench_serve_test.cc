// `lockstep bench serve` as a user starts it, against scripted servers; tests/system/test_load.py
// has real ones.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "launcher/commands/bench_serve_report.h"
#include "tests/launcher/load/servers.h"
#include "tests/launcher/program.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;
using testing::ErrorAnswer;
using testing::FakeHttpServer;
using testing::FakeRequest;
using testing::JsonAnswer;
using testing::Serving;
using testing::WholeStream;

std::string WriteTrace(const std::string& name, const std::string& text) {
  const std::string path = ::testing::TempDir() + "/" + name;
  std::ofstream(path) << text;
  return path;
}

std::string ThreeRequests() {
  return WriteTrace("three.jsonl",
                    "{\"at_s\": 0, \"prompt_tokens\": 8, \"output_tokens\": 4}\n"
                    "{\"at_s\": 0.01, \"prompt_tokens\": 8, \"output_tokens\": 4}\n"
                    "{\"at_s\": 0.02, \"prompt_tokens\": 8, \"output_tokens\": 4}\n");
}

std::vector<std::string> Arguments(const std::string& url, std::vector<std::string> more = {}) {
  std::vector<std::string> all = {"bench", "serve", "--url", url};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

std::string ErrorOf(const std::vector<std::string>& arguments) {
  Program bench(arguments);
  EXPECT_EQ(bench.Wait(), 2) << bench.error();
  EXPECT_EQ(bench.out(), "");
  EXPECT_EQ(bench.ErrorLines().size(), 1u);
  return bench.error();
}

TEST(BenchServe, PrintsATableOrAnObject) {
  FakeHttpServer server(Serving([](const FakeRequest&) { return WholeStream(8, 4, 2); }));
  const std::vector<std::string> arguments =
      Arguments(server.url() + "/v1", {"--trace", ThreeRequests(), "--slo-ttft-ms", "60000"});
  Program table(arguments);
  EXPECT_EQ(table.Wait(), 0) << table.error();
  for (const char* name : {"first token", "inter token", "queue ", "end to end", "client's lag",
                           "goodput", "3 answered", "0 failed"}) {
    EXPECT_THAT(table.out(), HasSubstr(name));
  }
  std::vector<std::string> with_json = arguments;
  with_json.emplace_back("--json");
  Program object(with_json);
  EXPECT_EQ(object.Wait(), 0) << object.error();
  const Json said = Json::parse(object.out(), nullptr, false);
  ASSERT_TRUE(said.is_object()) << object.out();
  EXPECT_EQ(said["completed"], 3);
  EXPECT_EQ(said["output_tokens"], 12);
  EXPECT_EQ(said["cached_part"], 0.25);
  EXPECT_EQ(said["goodput"]["part"], 1.0);
  EXPECT_EQ(said["goodput"]["slo_ttft_s"], 60.0);
  EXPECT_EQ(said["goodput"]["slo_inter_token_s"], nullptr);
  EXPECT_EQ(said["inter_token_s"]["count"], 9);
  EXPECT_EQ(said["model"], "tiny");
  EXPECT_EQ(said["failures"], Json::array());
}

TEST(BenchServe, SaysWhatItCannot) {
  FakeHttpServer server(Serving([](const FakeRequest&) { return WholeStream(8, 4); }));
  const std::string url = server.url();
  EXPECT_THAT(ErrorOf(Arguments("http://127.0.0.1:1")),
              AllOf(HasSubstr("--url http://127.0.0.1:1: no connection"), HasSubstr("runs")));
  EXPECT_THAT(ErrorOf(Arguments("127.0.0.1:8000")), HasSubstr("--url"));
  EXPECT_THAT(ErrorOf(Arguments(url + "/?a=b")), HasSubstr("without a file or a query"));
  EXPECT_THAT(ErrorOf(Arguments(url, {"--model", "gpt"})), HasSubstr("no model 'gpt' but 'tiny'"));
  EXPECT_THAT(ErrorOf(Arguments(url, {"--api-key-file", "/none"})), HasSubstr("--api-key-file"));
  EXPECT_THAT(ErrorOf(Arguments(url, {"--trace", WriteTrace("bad.jsonl", "{\"at_s\": 0}\n")})),
              HasSubstr("bad.jsonl:1: 'prompt_tokens'"));
  EXPECT_THAT(ErrorOf(Arguments(url, {"--tls-ca", "/none"})), HasSubstr("is for https://"));
  EXPECT_THAT(ErrorOf(Arguments("https://localhost:1", {"--tls-ca", "/none"})),
              HasSubstr("--tls-ca: /none"));
  FakeHttpServer terse(
      [](const FakeRequest&) { return JsonAnswer("200 OK", R"({"data":[{"id":"tiny"}]})"); });
  EXPECT_THAT(ErrorOf(Arguments(terse.url())), HasSubstr("--vocab-size"));
  EXPECT_THAT(ErrorOf(Arguments(terse.url(), {"--vocab-size", "100"})),
              HasSubstr("--max-model-len"));
}

TEST(BenchServe, WhereNothingIsAnsweredTheReportIsPrintedAndTheReasonIsTheError) {
  FakeHttpServer server(Serving([](const FakeRequest&) { return ErrorAnswer("500 No", "burnt"); }));
  Program bench(Arguments(server.url(), {"--trace", ThreeRequests(), "--json"}));
  EXPECT_EQ(bench.Wait(), 1);
  EXPECT_EQ(Json::parse(bench.out(), nullptr, false)["failures"][0]["count"], 3);
  EXPECT_THAT(bench.error(), HasSubstr("no request was answered: HTTP 500: 3 (burnt)"));
}

TEST(BenchServe, ASignalEndsItWithTheReportSoFar) {
  const auto answer = [](const FakeRequest& request) {
    if (request.number > 1) request.server->Sleep(60'000);
    return WholeStream(8, 4);
  };
  FakeHttpServer server(Serving(answer));
  Program bench(Arguments(server.url(), {"--rate", "50", "--duration-s", "1000", "--json"}));
  for (int i = 0; i < 3000 && server.requests() < 4; ++i) server.Sleep(10);
  kill(bench.pid(), SIGINT);
  EXPECT_EQ(bench.Wait(), 0) << bench.error();
  const Json said = Json::parse(bench.out(), nullptr, false);
  ASSERT_TRUE(said.is_object()) << bench.out();
  EXPECT_EQ(said["stopped"], true);
  EXPECT_GE(said["unfinished"], 1);
  EXPECT_LT(said["requests"], said["trace_requests"]);
}

// A client that was late is told of.
TEST(BenchServe, AClientThatIsLateDoesNotKeepTheSchedule) {
  LoadReport report;
  for (int i = 0; i < 99; ++i) report.result.lag.Add(0.001);
  report.result.lag.Add(1);
  EXPECT_TRUE(report.kept_schedule());
  report.result.lag.Add(1);
  EXPECT_FALSE(report.kept_schedule());
}

}  // namespace
}  // namespace lockstep
