// Connections, framing and time limits, with clients that send exactly what they are told.
#include "runtime/http/server.h"

#include <atomic>
#include <chrono>
#include <deque>
#include <future>
#include <mutex>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/http/client.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using testing::Ask;
using testing::BodyOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::RawClient;
using ::testing::StartsWith;

// An answer whose parts the test feeds while it is under way.
struct Feed {
  std::mutex mutex;
  std::deque<std::string> parts;
  bool last = false;
  bool failed = false;
  std::function<void()> wake;
  std::atomic<bool> destroyed{false};

  void Add(std::string part, bool is_last = false) {
    {
      const std::lock_guard lock(mutex);
      if (!part.empty()) parts.push_back(std::move(part));
      last = is_last;
    }
    wake();
  }
};

class FedReply final : public HttpReply {
 public:
  FedReply(std::shared_ptr<Feed> feed, bool late) : feed_(std::move(feed)), late_(late) {}
  ~FedReply() override { feed_->destroyed = true; }
  std::optional<HttpHead> Head() override {
    const std::lock_guard lock(feed_->mutex);
    if (late_ && feed_->parts.empty()) return std::nullopt;
    return HttpHead{.fields = {{"Content-Type", "text/event-stream"}}};
  }
  HttpPart Next() override {
    const std::lock_guard lock(feed_->mutex);
    if (feed_->failed) return {.failed = true};
    now_.clear();
    if (!feed_->parts.empty()) {
      now_ = std::move(feed_->parts.front());
      feed_->parts.pop_front();
    }
    return {now_, feed_->last && feed_->parts.empty()};
  }
  std::string_view Sign() override { return ": sign\n"; }

 private:
  std::shared_ptr<Feed> feed_;
  const bool late_;  // without a head before there is a part
  std::string now_;
};

class HttpServerTest : public ::testing::Test {
 protected:
  void Start(HttpServerOptions options = {}) {
    options.most_body_bytes = 100'000;
    auto server = HttpServer::Listen(options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = std::move(*server);
    server_->Serve({
        .refuse = [](const HttpCall& call) -> std::unique_ptr<HttpReply> {
          if (call.target == "/forbidden") return HttpText(401, "text/plain", "no\n");
          return nullptr;
        },
        .answer = [this](HttpCall call, std::function<void()> wake) -> std::unique_ptr<HttpReply> {
          if (call.target == "/feed" || call.target == "/headless") {
            feed_ = std::make_shared<Feed>();
            feed_->wake = std::move(wake);
            feeding_.set_value();
            return std::make_unique<FedReply>(feed_, call.target == "/headless");
          }
          if (call.target == "/throw") throw std::bad_alloc();
          if (call.target == "/hold") {
            held_.set_value();
            let_go_.get_future().wait();
          }
          return HttpText(200, "text/plain",
                          call.method + " " + call.target + " " +
                              std::string(call.Field("x-MINE")) + " " +
                              std::to_string(call.body.size()) + "\n");
        },
        .malformed =
            [](const HttpCall&, int status, std::string_view what) {
              return HttpText(status, "text/plain", std::string(what) + "\n");
            },
    });
  }
  int port() const { return server_->port(); }
  // Asks for the answer that the test feeds.
  void AskForFeed(RawClient& client, const std::string& version = "1.1",
                  const std::string& target = "/feed") {
    feeding_ = {};
    client.Send("GET " + target + " HTTP/" + version + "\r\nHost: localhost\r\n\r\n");
    feeding_.get_future().wait();
  }
  bool Destroyed() {
    for (int i = 0; i < 1000 && !feed_->destroyed; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    return feed_->destroyed;
  }

  std::unique_ptr<HttpServer> server_;
  std::shared_ptr<Feed> feed_;
  std::promise<void> feeding_;
  std::promise<void> held_, let_go_;
};

TEST_F(HttpServerTest, OneConnectionAsksManyTimes) {
  Start();
  RawClient client(port());
  client.Send("GET /a HTTP/1.1\r\nHost: h\r\nX-Mine: yes\r\n\r\n");
  EXPECT_THAT(client.ReadUntil("0\n"),
              AllOf(StartsWith("HTTP/1.1 200 OK\r\n"), HasSubstr("\r\nContent-Length: 13\r\n"),
                    EndsWith("\r\n\r\nGET /a yes 0\n"), Not(HasSubstr("Connection: close"))));
  client.Send("POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello");
  EXPECT_THAT(client.ReadUntil("5\n"), EndsWith("POST /b  5\n"));
  client.Send(
      "POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n");
  EXPECT_THAT(client.ReadUntil("7\n"), EndsWith("POST /c  7\n"));
  // Two at once: answered one behind the other.
  client.Send("GET /d HTTP/1.1\r\n\r\nGET /e HTTP/1.1\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(client.ReadToEnd(), AllOf(HasSubstr("GET /d  0\n"), HasSubstr("GET /e  0\n"),
                                        HasSubstr("Connection: close")));
  EXPECT_TRUE(client.ended());
}

TEST_F(HttpServerTest, HeadHasNoBodyAndOldClientsAreUnderstood) {
  Start();
  EXPECT_THAT(Ask(port(), "HEAD", "/a"),
              AllOf(HasSubstr("Content-Length: 11\r\n"), EndsWith("\r\n\r\n")));
  RawClient old(port());
  old.Send("GET /a HTTP/1.0\r\n\r\n");
  EXPECT_THAT(old.ReadToEnd(), AllOf(StartsWith("HTTP/1.0 200"), EndsWith("GET /a  0\n")));
  // Chunks are not for HTTP/1.0: the end of the connection ends the body.
  RawClient fed(port());
  AskForFeed(fed, "1.0");
  feed_->Add("one");
  feed_->Add("two", true);
  EXPECT_THAT(fed.ReadToEnd(), AllOf(EndsWith("\r\n\r\nonetwo"), Not(HasSubstr("chunked"))));
}

TEST_F(HttpServerTest, AnAnswerGrowsInChunks) {
  Start();
  RawClient client(port());
  AskForFeed(client);
  EXPECT_THAT(client.ReadUntil("\r\n\r\n"), HasSubstr("Transfer-Encoding: chunked"));
  feed_->Add("data: 1\n\n");
  EXPECT_EQ(client.ReadUntil("\n\n\r\n"), "9\r\ndata: 1\n\n\r\n");
  feed_->Add("data: 2\n\n", true);
  EXPECT_EQ(client.ReadUntil("0\r\n\r\n"), "9\r\ndata: 2\n\n\r\n0\r\n\r\n");
  EXPECT_TRUE(Destroyed());
  client.Send("GET /again HTTP/1.1\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(client.ReadToEnd(), EndsWith("GET /again  0\n"));
}

TEST_F(HttpServerTest, AnAnswerThatCannotGoOnCutsTheConnection) {
  Start();
  RawClient client(port());
  AskForFeed(client);
  feed_->Add("half");
  client.ReadUntil("half");
  {
    const std::lock_guard lock(feed_->mutex);
    feed_->failed = true;
  }
  feed_->wake();
  EXPECT_THAT(client.ReadToEnd(), Not(HasSubstr("0\r\n\r\n")));
  EXPECT_TRUE(client.ended());
}

TEST_F(HttpServerTest, AQuietAnswerGivesSigns) {
  Start({.quiet_ms = 30});
  RawClient client(port());
  AskForFeed(client);
  EXPECT_THAT(client.ReadUntil("sign\n\r\n7\r\n: sign\n"),
              HasSubstr("7\r\n: sign\n\r\n7\r\n: sign\n"));
  feed_->Add("x", true);
  EXPECT_THAT(client.ReadUntil("0\r\n\r\n"), HasSubstr("1\r\nx\r\n"));
  // Work that gives nothing to send, however often it says so, does not hold the sign back.
  AskForFeed(client);
  std::atomic<bool> done{false};
  std::thread busy([&] {
    while (!done) {
      feed_->wake();
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  });
  EXPECT_THAT(client.ReadUntil("sign\n"), HasSubstr(": sign\n"));
  done = true;
  busy.join();
}

TEST_F(HttpServerTest, ARequestSentAheadEndsNothing) {
  Start();
  RawClient client(port());
  AskForFeed(client, "1.1", "/headless");
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  client.Send("GET /next HTTP/1.1\r\n\r\n");
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_FALSE(feed_->destroyed);
  feed_->Add("here", true);
  EXPECT_THAT(client.ReadUntil("/next  0\n"),
              AllOf(HasSubstr("here"), HasSubstr("GET /next  0\n")));
}

TEST_F(HttpServerTest, BodiesShareWhatThereIsForThem) {
  Start({.most_body_bytes_together = 150'000});
  // The first one's body is being looked at for as long as the test wants.
  RawClient first(port());
  first.Send("POST /hold HTTP/1.1\r\nContent-Length: 90000\r\n\r\n" + std::string(90'000, 'x'));
  held_.get_future().wait();
  EXPECT_THAT(Ask(port(), "POST", "/a", std::string(90'000, 'x')),
              AllOf(StartsWith("HTTP/1.1 503"), HasSubstr("too many large requests"),
                    HasSubstr("Connection: close")));
  // What was refused takes no room, also while its client is still there; small ones fit beside.
  RawClient refused(port());
  refused.Send("POST /a HTTP/1.1\r\nContent-Length: 90000\r\n\r\n" + std::string(89'000, 'x'));
  EXPECT_THAT(refused.ReadUntil("requests at once"), StartsWith("HTTP/1.1 503"));
  EXPECT_THAT(Ask(port(), "POST", "/a", std::string(50'000, 'x')), HasSubstr("200 OK"));
  let_go_.set_value();
  EXPECT_THAT(first.ReadUntil("90000\n"), HasSubstr("200 OK"));
  EXPECT_THAT(Ask(port(), "POST", "/a", std::string(90'000, 'x')), HasSubstr("200 OK"));
}

TEST_F(HttpServerTest, WorkEndsWhenItsClientIsGone) {
  Start();
  for (const bool half : {false, true}) {
    RawClient client(port());
    AskForFeed(client);
    client.ReadUntil("\r\n\r\n");
    EXPECT_FALSE(feed_->destroyed);
    half ? client.HalfClose() : client.Close();
    EXPECT_TRUE(Destroyed());
    feed_->wake();  // for nobody
  }
  // Also on a connection that was used before.
  RawClient client(port());
  client.Send("GET /a HTTP/1.1\r\n\r\n");
  client.ReadUntil("0\n");
  AskForFeed(client);
  client.ReadUntil("\r\n\r\n");
  client.Close();
  EXPECT_TRUE(Destroyed());
}

TEST_F(HttpServerTest, AClientThatDoesNotReadIsDroppedAndHoldsOnePart) {
  Start({.part_ms = 200});
  RawClient client(port());
  AskForFeed(client);
  int added = 0;
  for (; added < 200 && !feed_->destroyed; ++added) {
    feed_->Add(std::string(1 << 20, 'x'));
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_TRUE(Destroyed());
  // The sockets' buffers took some parts; the rest stayed where it was.
  EXPECT_GT(feed_->parts.size(), 0u);
}

TEST_F(HttpServerTest, LargeBodiesAreAskedForAndTooLargeOnesRefused) {
  Start();
  RawClient client(port());
  client.Send("POST /a HTTP/1.1\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(client.ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.Send("body");
  EXPECT_THAT(client.ReadUntil("4\n"), EndsWith("POST /a  4\n"));
  EXPECT_THAT(Ask(port(), "POST", "/a", "", "Content-Length: 100001\r\n"),
              AllOf(StartsWith("HTTP/1.1 413"), HasSubstr("larger than 100000 bytes")));
  EXPECT_THAT(Ask(port(), "POST", "/a", "", "Content-Length: 99999999999999999999\r\n"),
              StartsWith("HTTP/1.1 400"));
  // In chunks nobody knows before.
  RawClient chunks(port());
  chunks.Send("POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n30000\r\n" +
              std::string(0x30000, 'x') + "\r\n0\r\n\r\n");
  EXPECT_THAT(chunks.ReadToEnd(), Not(HasSubstr("200 OK")));
  EXPECT_TRUE(chunks.ended());
}

TEST_F(HttpServerTest, WhoIsRefusedHearsItBeforeTheBody) {
  Start();
  RawClient client(port());
  client.Send("POST /forbidden HTTP/1.1\r\nContent-Length: 50000\r\n\r\n");
  EXPECT_THAT(client.ReadToEnd(),
              AllOf(StartsWith("HTTP/1.1 401"), HasSubstr("Connection: close")));
  EXPECT_TRUE(client.ended());
  EXPECT_THAT(Ask(port(), "POST", "/forbidden", "", "Content-Length: 5000000\r\n"),
              StartsWith("HTTP/1.1 401"));
  // All of a body that comes nevertheless is taken, so that the answer is not lost to a reset.
  RawClient eager(port());
  eager.Send("POST /forbidden HTTP/1.1\r\nContent-Length: 90000\r\n\r\n" +
             std::string(90'000, 'x'));
  EXPECT_THAT(eager.ReadToEnd(), StartsWith("HTTP/1.1 401"));
  // Who was never let in begins anew; others may go on.
  RawClient stranger(port());
  stranger.Send("GET /forbidden HTTP/1.1\r\n\r\n");
  stranger.ReadToEnd();
  EXPECT_TRUE(stranger.ended());
  RawClient other(port());
  other.Send("GET /a HTTP/1.1\r\n\r\n");
  other.ReadUntil("0\n");
  other.Send("GET /forbidden HTTP/1.1\r\n\r\n");
  other.ReadUntil("no\n");
  other.Send("GET /a HTTP/1.1\r\n\r\n");
  EXPECT_THAT(other.ReadUntil("0\n"), EndsWith("GET /a  0\n"));
}

TEST_F(HttpServerTest, WhatIsNoRequestIsRefused) {
  Start();
  for (const std::string& bytes :
       {std::string("nonsense\r\n\r\n"), std::string("GET / HTTP/9.9\r\n\r\n"),
        std::string("GET / HTTP/1.1\r\nno colon\r\n\r\n"),
        std::string("GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"),
        std::string("GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
        std::string("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        std::string(1, '\0') + "\r\n\r\n"}) {
    RawClient client(port());
    client.Send(bytes);
    EXPECT_THAT(client.ReadToEnd(), StartsWith("HTTP/1.1 400")) << bytes;
    EXPECT_TRUE(client.ended());
  }
  EXPECT_THAT(Ask(port(), "GET", "/a", "", "X: " + std::string(20'000, 'x') + "\r\n"),
              StartsWith("HTTP/1.1 431"));
}

TEST_F(HttpServerTest, SlowStrangersAreDropped) {
  Start({.request_ms = 100});
  RawClient client(port());
  client.Send("GET /a HT");
  EXPECT_EQ(client.ReadToEnd(5'000), "");
  EXPECT_TRUE(client.ended());
}

TEST_F(HttpServerTest, SlowBodiesAreDropped) {
  Start({.body_ms = 100});
  RawClient client(port());
  client.Send("POST /a HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf");
  EXPECT_EQ(client.ReadToEnd(5'000), "");
  EXPECT_TRUE(client.ended());
}

TEST_F(HttpServerTest, StrangersLeaveRoom) {
  Start({.most_connections = 8, .request_ms = 60'000});
  RawClient known(port());
  known.Send("GET /a HTTP/1.1\r\n\r\n");
  EXPECT_THAT(known.ReadUntil("0\n"), EndsWith("GET /a  0\n"));
  // Two connections that say nothing are a quarter: of more the oldest go, and nobody waits.
  std::deque<RawClient> strangers;
  for (int i = 0; i < 20; ++i) strangers.emplace_back(port());
  RawClient late(port());
  late.Send("GET /b HTTP/1.1\r\n\r\n");
  EXPECT_THAT(late.ReadUntil("0\n"), EndsWith("GET /b  0\n"));
  for (int i = 0; i < 18; ++i) {
    EXPECT_EQ(strangers[i].ReadToEnd(), "");
    EXPECT_TRUE(strangers[i].ended()) << i;
  }
  EXPECT_EQ(strangers[19].ReadUntil("x", 100), "");
  EXPECT_FALSE(strangers[19].ended());
  known.Send("GET /c HTTP/1.1\r\n\r\n");
  EXPECT_THAT(known.ReadUntil("0\n"), EndsWith("GET /c  0\n"));
}

TEST_F(HttpServerTest, ALargeRequestHoldsUpNobody) {
  Start({.threads = 1, .workers = 1});
  RawClient large(port());
  large.Send("POST /hold HTTP/1.1\r\nContent-Length: 90000\r\n\r\n" + std::string(90'000, 'x'));
  held_.get_future().wait();
  EXPECT_THAT(Ask(port(), "GET", "/a"), EndsWith("GET /a  0\n"));
  // A client that goes meanwhile ends nothing but its own.
  let_go_.set_value();
  EXPECT_THAT(large.ReadUntil("90000\n"), EndsWith("POST /hold  90000\n"));
  for (int i = 0; i < 5; ++i) {
    RawClient gone(port());
    gone.Send("POST /b HTTP/1.1\r\nContent-Length: 90000\r\n\r\n" + std::string(90'000, 'x'));
  }
  EXPECT_THAT(Ask(port(), "POST", "/a", std::string(90'000, 'x')), EndsWith("POST /a  90000\n"));
}

TEST_F(HttpServerTest, AClientThatAskedAheadAndLeftIsMissed) {
  Start();
  RawClient client(port());
  AskForFeed(client, "1.1", "/headless");
  client.Send("GET /next HTTP/1.1\r\n\r\n");
  client.Close();
  EXPECT_TRUE(Destroyed());
}

TEST_F(HttpServerTest, AnswersTellBrowsersWhatNotToDo) {
  Start();
  for (const char* target : {"/a", "/forbidden"}) {
    EXPECT_THAT(Ask(port(), "GET", target),
                AllOf(HasSubstr("\r\nX-Content-Type-Options: nosniff\r\n"),
                      HasSubstr("\r\nReferrer-Policy: no-referrer\r\n"),
                      HasSubstr("\r\nCache-Control: no-store\r\n")));
  }
}

TEST_F(HttpServerTest, AnAnswerThatCannotBeMadeEndsItsConnectionAlone) {
  Start();
  EXPECT_EQ(Ask(port(), "GET", "/throw"), "");
  EXPECT_THAT(Ask(port(), "GET", "/a"), EndsWith("GET /a  0\n"));
}

TEST_F(HttpServerTest, ShutdownLetsAnswersEnd) {
  Start();
  RawClient client(port());
  AskForFeed(client);
  std::thread shutdown([this] { server_->Shutdown(10'000); });
  client.ReadUntil("\r\n\r\n");
  feed_->Add("last words", true);
  EXPECT_THAT(client.ReadUntil("0\r\n\r\n"), HasSubstr("last words"));
  shutdown.join();
  // Nothing new is answered, also where a connection is there already.
  client.Send("GET /a HTTP/1.1\r\n\r\n");
  EXPECT_EQ(client.ReadToEnd(), "");
  EXPECT_TRUE(client.ended());
}

TEST_F(HttpServerTest, AnAnswerThatNeverEndsIsCutWithTheServer) {
  Start();
  RawClient client(port());
  AskForFeed(client);
  server_->Shutdown(20);
  EXPECT_FALSE(feed_->destroyed);
  server_.reset();
  EXPECT_TRUE(feed_->destroyed);
  client.ReadToEnd();
  EXPECT_TRUE(client.ended());
}

TEST_F(HttpServerTest, APortInUseIsAnError) {
  Start();
  const auto second = HttpServer::Listen({.port = port()});
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(KindOf(second.status()), ErrorKind::kUsage);
  EXPECT_THAT(MessageOf(second.status()), HasSubstr("in use"));
}

}  // namespace
}  // namespace lockstep
