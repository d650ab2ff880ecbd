// HTTP through TLS, with clients that send exactly what they are told.
#include "runtime/http/tls.h"

#include <atomic>
#include <chrono>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/http/server.h"
#include "tests/runtime/http/certificates.h"
#include "tests/support/temporary.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using testing::MakeCertificate;
using ::testing::Not;
using testing::Pem;
using testing::RawClient;
using ::testing::StartsWith;
using testing::TemporaryDirectory;
using testing::TlsClient;

// An answer that says "begun" and never ends.
class EndlessReply final : public HttpReply {
 public:
  explicit EndlessReply(std::atomic<int>& ended) : ended_(ended) {}
  ~EndlessReply() override { ++ended_; }
  std::optional<HttpHead> Head() override { return HttpHead{}; }
  HttpPart Next() override { return {std::exchange(text_, {})}; }

 private:
  std::atomic<int>& ended_;
  std::string_view text_ = "begun";
};

class TlsTest : public ::testing::Test {
 protected:
  void Write(const Pem& pem) {
    directory_.Write("cert.pem", pem.certificate);
    directory_.Write("key.pem", pem.key);
  }
  TlsFiles Files() const {
    return {directory_.path() + "/cert.pem", directory_.path() + "/key.pem"};
  }

  void Start(HttpServerOptions options = {.request_ms = 20'000}) {
    Write(MakeCertificate(7));
    options.most_body_bytes = 1'000'000;
    options.tls = Files();
    auto server = HttpServer::Listen(options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = std::move(*server);
    server_->Serve({
        .refuse = [](const HttpCall&) { return nullptr; },
        .answer = [this](HttpCall call,
                         const std::function<void()>&) -> std::unique_ptr<HttpReply> {
          if (call.target == "/endless") return std::make_unique<EndlessReply>(ended_);
          return HttpText(200, "text/plain", call.target + " " + call.body + "\n");
        },
        .malformed =
            [](const HttpCall&, int status, std::string_view what) {
              return HttpText(status, "text/plain", std::string(what) + "\n");
            },
    });
  }
  int port() const { return server_->port(); }
  bool Ended(int answers) {
    for (int i = 0; i < 1000 && ended_ < answers; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    return ended_ == answers;
  }

  TemporaryDirectory directory_;
  std::atomic<int> ended_{0};
  std::unique_ptr<HttpServer> server_;
};

TEST_F(TlsTest, OneConnectionAsksManyTimes) {
  Start();
  TlsClient client(port());
  ASSERT_TRUE(client.shaken());
  EXPECT_EQ(client.serial(), 7);
  client.Send("GET /a HTTP/1.1\r\nHost: example.org\r\n\r\n");
  EXPECT_THAT(client.ReadUntil("/a \n"),
              // What a browser keeps would hold for all ports of the name.
              AllOf(StartsWith("HTTP/1.1 200"), Not(HasSubstr("Strict-Transport-Security"))));
  const std::string body(300'000, 'x');
  client.Send("POST /c HTTP/1.1\r\nConnection: close\r\nContent-Length: 300000\r\n\r\n" + body);
  EXPECT_THAT(client.ReadToEnd(), EndsWith("/c " + body + "\n"));
  EXPECT_TRUE(client.told_end());
}

TEST_F(TlsTest, WorkEndsWhenItsClientIsGone) {
  Start();
  int answers = 0;
  for (const bool politely : {true, false}) {
    TlsClient client(port());
    client.Send("GET /endless HTTP/1.1\r\n\r\n");
    client.ReadUntil("begun");
    EXPECT_EQ(ended_, answers);
    politely ? client.Shutdown() : client.raw().Close();
    EXPECT_TRUE(Ended(++answers)) << politely;
  }
}

TEST_F(TlsTest, HandshakesThatDoNotEndAreDropped) {
  Start({.request_ms = 1000});
  RawClient silent(port());
  EXPECT_EQ(silent.ReadToEnd(5'000), "");
  EXPECT_TRUE(silent.ended());
  // The beginning of a record that says it has 512 bytes.
  RawClient half(port());
  half.Send(std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11));
  EXPECT_EQ(half.ReadToEnd(5'000), "");
  EXPECT_TRUE(half.ended());
  // Who shook hands and says nothing then, too.
  TlsClient shaken(port());
  EXPECT_TRUE(shaken.shaken());
  EXPECT_EQ(shaken.ReadToEnd(), "");
}

TEST_F(TlsTest, OthersAreTurnedAway) {
  Start();
  RawClient plain(port());
  plain.Send("GET /a HTTP/1.1\r\n\r\n");
  EXPECT_THAT(plain.ReadToEnd(), Not(HasSubstr("200 OK")));
  EXPECT_TRUE(plain.ended());
  EXPECT_FALSE(TlsClient(port(), TLS1_1_VERSION).shaken());
  EXPECT_TRUE(TlsClient(port(), TLS1_2_VERSION).shaken());
}

TEST_F(TlsTest, AnotherCertificateIsTakenWithoutARestart) {
  Start();
  const auto wait_for = [&](int64_t serial) {
    for (int i = 0; i < 60 && TlsClient(port()).serial() != serial; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    EXPECT_EQ(TlsClient(port()).serial(), serial);
  };
  TlsClient before(port());
  before.Send("GET /a HTTP/1.1\r\n\r\n");  // so that it may stay
  EXPECT_THAT(before.ReadUntil("/a \n"), StartsWith("HTTP/1.1 200"));
  Write(MakeCertificate(8));
  wait_for(8);
  // One that cannot be used changes nothing, nor do connections of before.
  Write(MakeCertificate(9, -7200, -3600));
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));
  EXPECT_EQ(TlsClient(port()).serial(), 8);
  before.Send("GET /a HTTP/1.1\r\n\r\n");
  EXPECT_THAT(before.ReadUntil("/a \n"), StartsWith("HTTP/1.1 200"));
}

TEST_F(TlsTest, FilesThatCannotBeUsedAreNamedWithTheirFlag) {
  const Pem good = MakeCertificate(1);
  const auto refused = [&](const Pem& pem) {
    Write(pem);
    const Status status = TlsCertificate::Load(Files()).status();
    EXPECT_EQ(KindOf(status), ErrorKind::kUsage);
    return MessageOf(status);
  };
  EXPECT_THAT(refused({"nonsense", good.key}), HasSubstr("--tls-cert " + Files().certificate));
  EXPECT_THAT(refused({good.key, good.key}), HasSubstr("BEGIN CERTIFICATE"));
  EXPECT_THAT(refused({good.certificate, "nonsense"}), HasSubstr("--tls-key " + Files().key));
  EXPECT_THAT(refused({good.certificate, MakeCertificate(1).key}), HasSubstr("made together"));
  EXPECT_THAT(refused({good.certificate, "-----BEGIN ENCRYPTED PRIVATE KEY-----\n"}),
              HasSubstr("password"));
  EXPECT_THAT(refused(MakeCertificate(1, -7200, -3600)), HasSubstr("expired on "));
  EXPECT_THAT(refused(MakeCertificate(1, 3600, 7200)), HasSubstr("begins on "));
  Write(good);
  EXPECT_TRUE(TlsCertificate::Load(Files()).ok());
  EXPECT_THAT(MessageOf(TlsCertificate::Load({Files().certificate, ""}).status()),
              HasSubstr("--tls-key is missing"));
  EXPECT_THAT(MessageOf(TlsCertificate::Load({"", Files().key}).status()),
              HasSubstr("--tls-cert is missing"));
  EXPECT_THAT(MessageOf(TlsCertificate::Load({directory_.path() + "/none", "x"}).status()),
              AllOf(HasSubstr("--tls-cert"), HasSubstr("/none")));
}

}  // namespace
}  // namespace lockstep
