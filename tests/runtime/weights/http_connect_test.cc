// What the first requests to a server find out, and whom they reach.
#include <cstdlib>
#include <mutex>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/weights/http_files.h"
#include "tests/support/fake_http.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using testing::FakeHttpServer;
using testing::FakeRequest;
using ::testing::HasSubstr;
using testing::HttpNotFound;
using testing::HttpPart;
using testing::HttpText;
using testing::Quick;

TEST(HttpConnectTest, AListThatDoesNotComeIsAnErrorAndNotNone) {
  const auto with_list = [](const std::string& answer) {
    return [answer](const FakeRequest& request) {
      if (request.path == "/") return answer;
      // What a directory of Hugging Face would have.
      return request.path == "/model.safetensors" ? HttpPart("weights", request) : HttpNotFound();
    };
  };
  for (const char* status : {"503 Service Unavailable", "500 Oops", "429 Too Many Requests"}) {
    FakeHttpServer server(with_list(HttpText(status, "Content-Length: 0\r\n", "")));
    EXPECT_THAT(MessageOf(HttpFiles::Connect(server.url(), Quick()).status()),
                AllOf(HasSubstr(std::string(status).substr(0, 3)), HasSubstr("gave up")));
  }
  FakeHttpServer broken(with_list("HTTP/1.1 200 OK\r\nContent-Type: appl"));
  EXPECT_THAT(MessageOf(HttpFiles::Connect(broken.url(), Quick()).status()), HasSubstr("gave up"));
  FakeHttpServer* self = nullptr;
  FakeHttpServer silent([&](const FakeRequest&) {
    self->Sleep(5'000);
    return HttpNotFound();
  });
  self = &silent;
  EXPECT_THAT(MessageOf(HttpFiles::Connect(silent.url(), Quick()).status()),
              HasSubstr("nothing came"));
  for (const char* status : {"404 Not Found", "403 Forbidden", "405 Method Not Allowed"}) {
    FakeHttpServer server(with_list(HttpText(status, "Content-Length: 0\r\n", "")));
    const auto files = HttpFiles::Connect(server.url(), Quick());
    ASSERT_TRUE(files.ok()) << files.status();
    EXPECT_EQ((*files)->List(), (std::vector<std::string>{"model.safetensors"}));
  }
}

TEST(HttpConnectTest, NamesAreSentAsServersExpectThem) {
  std::vector<std::string> asked;
  std::mutex mutex;
  FakeHttpServer server([&](const FakeRequest& request) {
    const std::lock_guard lock(mutex);
    asked.push_back(request.path);
    return HttpPart("0123456789", request);
  });
  for (const char* name : {"a+b-c_d.gguf", "a%2Bb.gguf", "a%20b%25.gguf"})
    ASSERT_TRUE(HttpFiles::Connect(server.url() + "/" + name, Quick()).ok()) << name;
  EXPECT_EQ(asked, (std::vector<std::string>{"/a+b-c_d.gguf", "/a+b.gguf", "/a%20b%25.gguf"}));
}

// The proxies that the environment names, for as long as this lives.
class Proxy {
 public:
  explicit Proxy(const std::string& url) {
    for (const char* name : {"http_proxy", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"}) {
      const char* before = getenv(name);
      before_.emplace_back(name, before == nullptr ? "" : before);
      unsetenv(name);
    }
    setenv("http_proxy", url.c_str(), 1);
  }
  ~Proxy() {
    for (const auto& [name, value] : before_)
      value.empty() ? unsetenv(name.c_str()) : setenv(name.c_str(), value.c_str(), 1);
  }

 private:
  std::vector<std::pair<std::string, std::string>> before_;
};

TEST(HttpConnectTest, NoProxySeesAToken) {
  FakeHttpServer server([&](const FakeRequest& request) { return HttpPart("0123", request); });
  const Proxy proxy(server.url());
  HttpOptions options = Quick();
  options.connect_timeout_ms = 200;
  // An address for documentation: nobody is there.
  const std::string url = "http://192.0.2.1:8000/x.gguf";
  EXPECT_TRUE(HttpFiles::Connect(url, options).ok());
  const int requests = server.requests();
  EXPECT_GT(requests, 0);
  options.token = "secret-token";
  EXPECT_FALSE(HttpFiles::Connect(url, options).ok());
  EXPECT_EQ(server.requests(), requests);
}

}  // namespace
}  // namespace lockstep
