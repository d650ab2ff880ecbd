// What `lockstep files` serves, to whom, and for how long.
#include "launcher/files/file_server.h"

#include <sys/stat.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/base/digest.h"
#include "runtime/weights/http_client.h"
#include "tests/launcher/files/serving.h"
#include "tests/support/temporary.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::TemporaryDirectory;

TEST(FileServerTest, PartsOfFilesAreServed) {
  const TemporaryDirectory directory;
  directory.Write("x.gguf", "0123456789");
  directory.Write("config.json", "{}");
  const Serving serving(directory.path());
  EXPECT_THAT(Get(serving, "/"),
              AllOf(HasSubstr("200 OK"), HasSubstr("application/json"),
                    HasSubstr(R"({"lockstep":"files","files":[{"name":"config.json","bytes":2},)"
                              R"({"name":"x.gguf","bytes":10}]})")));
  EXPECT_THAT(
      Get(serving, "/x.gguf"),
      AllOf(HasSubstr("200 OK"), HasSubstr("Accept-Ranges: bytes, strided"), HasSubstr("ETag: "),
            HasSubstr("Content-Length: 10\r\n"), HasSubstr("\r\n\r\n0123456789")));
  for (const auto& [range, part, text] :
       std::vector<std::tuple<std::string, std::string, std::string>>{
           {"2-4", "2-4", "234"},
           {"7-", "7-9", "789"},
           {"-3", "7-9", "789"},
           {"9-100", "9-9", "9"},
           {"0-0", "0-0", "0"},
           {"-100", "0-9", "0123456789"}}) {
    EXPECT_THAT(Get(serving, "/x.gguf", "Range: bytes=" + range + "\r\n"),
                AllOf(HasSubstr("206 Partial"), HasSubstr("Content-Range: bytes " + part + "/10"),
                      HasSubstr("\r\n\r\n" + text)))
        << range;
  }
  EXPECT_THAT(Get(serving, "/x.gguf", "Range: strided=0-2-4-3\r\n"),
              AllOf(HasSubstr("206 Partial"), HasSubstr("Content-Range: strided 0-2-4-3/10"),
                    HasSubstr("Content-Length: 6\r\n"), HasSubstr("\r\n\r\n014589")));
  for (const char* range :
       {"strided=1-2-4-3", "bytes=10-", "bytes=4-2", "bytes=-0", "bytes=0-1,3-4", "bytes=", "x",
        "bytes=-", "bytes=99999999999999999999-"}) {
    EXPECT_THAT(Get(serving, "/x.gguf", std::string("Range: ") + range + "\r\n"),
                AllOf(HasSubstr("416"), HasSubstr("bytes */10")))
        << range;
  }
  EXPECT_THAT(Get(serving, "/x.gguf", "", "HEAD"),
              AllOf(HasSubstr("Content-Length: 10"), EndsWith("\r\n\r\n")));
  EXPECT_THAT(Get(serving, "/x.gguf", "", "DELETE"), HasSubstr("405"));
  EXPECT_THAT(Get(serving, "/x.gguf", "Content-Length: 5\r\n\r\nhello", "POST"), HasSubstr("405"));
  EXPECT_THAT(Exchange(serving.server->port(), "nonsense\r\n\r\n"), Not(HasSubstr("200")));
  EXPECT_THAT(Get(serving, "/x.gguf", "X: " + std::string(20'000, 'x') + "\r\n"),
              Not(HasSubstr("200")));
}

std::string DigestLine(const std::string& bytes) {
  return absl::StrFormat("Lockstep-Digest: %016x\r\n", Digest64(std::as_bytes(std::span(bytes))));
}

TEST(FileServerTest, WhoWantsItGetsTheDigestOfARangeBeforeIt) {
  const TemporaryDirectory directory;
  // Of more than one chunk.
  std::string contents;
  while (contents.size() < 700000) contents += std::to_string(contents.size());
  directory.Write("x.gguf", contents);
  const Serving serving(directory.path());
  const std::string wants = "Lockstep-Want-Digest: xxh3\r\n";
  EXPECT_THAT(Get(serving, "/x.gguf", wants + "Range: bytes=3-650002\r\n"),
              AllOf(HasSubstr(DigestLine(contents.substr(3, 650'000))),
                    HasSubstr("\r\n\r\n" + contents.substr(3, 650'000))));
  EXPECT_THAT(Get(serving, "/x.gguf", wants + "Range: strided=0-2-4-2\r\n"),
              HasSubstr(DigestLine(contents.substr(0, 2) + contents.substr(4, 2))));
  EXPECT_THAT(Get(serving, "/x.gguf", wants), HasSubstr(DigestLine(contents)));
  EXPECT_THAT(Get(serving, "/x.gguf", "Range: bytes=3-6\r\n"), Not(HasSubstr("Lockstep-Digest")));
  EXPECT_THAT(Get(serving, "/x.gguf", "Lockstep-Want-Digest: md5\r\n"),
              Not(HasSubstr("Lockstep-Digest")));
  EXPECT_THAT(Get(serving, "/x.gguf", wants, "HEAD"), Not(HasSubstr("Lockstep-Digest")));
}

TEST(FileServerTest, OfMorePiecesThanAreReadAtOnceThereIsNoDigest) {
  const TemporaryDirectory directory;
  directory.Write("x.gguf", std::string(700'000, 'x'));
  const Serving serving(directory.path());
  EXPECT_THAT(
      Get(serving, "/x.gguf", "Lockstep-Want-Digest: xxh3\r\nRange: strided=0-1-10-65537\r\n"),
      AllOf(HasSubstr("206 Partial"), Not(HasSubstr("Lockstep-Digest"))));
}

TEST(FileServerTest, TextsStandBesideTheFilesAndInTheirPlace) {
  const TemporaryDirectory directory;
  directory.Write("x.gguf", "0123456789");
  directory.Write("probe.json", "what lies there");
  const std::string text = R"({"a": 1})";
  const Serving open(directory.path(), "", {{"probe.json", text}, {"more", "{}"}});
  EXPECT_THAT(Get(open, "/"), HasSubstr(R"([{"name":"x.gguf","bytes":10},{"name":"more","bytes":2})"
                                        R"(,{"name":"probe.json","bytes":8}])"));
  EXPECT_THAT(Get(open, "/probe.json", "Range: bytes=0-1000\r\n"),
              AllOf(HasSubstr("200 OK"), HasSubstr("\r\n\r\n" + text)));
  EXPECT_THAT(Get(open, "/probe.json", "", "HEAD"),
              AllOf(HasSubstr("Content-Length: 8"), Not(HasSubstr(text))));
  const Serving closed(directory.path(), kSecret, {{"probe.json", text}});
  EXPECT_THAT(Get(closed, "/probe.json"), AllOf(HasSubstr("401"), Not(HasSubstr(text))));
}

TEST(FileServerTest, OnlyFilesOfModelsAreServed) {
  const TemporaryDirectory outside, directory;
  outside.Write("secret", "hidden words");
  outside.Write("blob", "linked words");
  directory.Write("x.safetensors", "tensor words");
  directory.Write("notes.txt", "hidden words");
  directory.Write(".config.json", "hidden words");
  directory.Write("rank-0-of-2.lockstep.part", "hidden words");
  std::filesystem::create_directory(directory.File("folder.gguf"));
  std::filesystem::create_symlink(outside.File("blob"), directory.File("model.gguf"));
  std::filesystem::create_symlink(outside.path(), directory.File("dir.safetensors"));
  std::filesystem::create_symlink(outside.File("none"), directory.File("gone.safetensors"));
  ASSERT_EQ(mkfifo(directory.File("pipe.gguf").c_str(), 0600), 0);
  const Serving serving(directory.path());
  EXPECT_THAT(Get(serving, "/x.safetensors"), HasSubstr("tensor words"));
  EXPECT_THAT(Get(serving, "/model.gguf"), HasSubstr("linked words"));
  const std::string up = outside.path().substr(outside.path().rfind('/') + 1);
  const std::vector<std::string> targets = {"/notes.txt",
                                            "/.config.json",
                                            "/folder.gguf",
                                            "/rank-0-of-2.lockstep.part",
                                            "/dir.safetensors",
                                            "/gone.safetensors",
                                            "/pipe.gguf",
                                            "/../" + up + "/secret",
                                            "/..%2f" + up + "%2fsecret",
                                            "/folder.gguf/../x.safetensors",
                                            "//" + outside.File("secret"),
                                            "/%2e%2e/x.gguf",
                                            "/x.safetensors?a",
                                            "x.safetensors",
                                            "http://localhost/x.safetensors",
                                            "/x.safetensors/"};
  for (const std::string& target : targets) {
    EXPECT_THAT(Get(serving, target), AllOf(HasSubstr("404"), Not(HasSubstr("words")))) << target;
  }
  EXPECT_THAT(Get(serving, "/"), AllOf(HasSubstr("x.safetensors"), HasSubstr("model.gguf"),
                                       Not(HasSubstr("notes")), Not(HasSubstr("pipe"))));
}

TEST(FileServerTest, WithASecretEveryRequestProvesIt) {
  const TemporaryDirectory directory;
  directory.Write("x.gguf", "0123456789");
  const Serving serving(directory.path(), kSecret);
  const std::string token = FileToken(kSecret);
  EXPECT_EQ(token.size(), 64u);
  EXPECT_THAT(token, Not(HasSubstr(std::string(kSecret).substr(0, 8))));
  for (const char* target : {"/", "/x.gguf", "/none"}) {
    for (const std::string& field :
         {std::string(), std::string("Authorization: Bearer \r\n"),
          "Authorization: Bearer " + FileToken("another secret, long enough") + "\r\n",
          "Authorization: Bearer " + token.substr(1) + "\r\n",
          "Authorization: Bearer " + token + "0\r\n", "Authorization: Basic " + token + "\r\n",
          std::string("Authorization: Bearer ") + kSecret + "\r\n"}) {
      EXPECT_THAT(Get(serving, target, field),
                  AllOf(HasSubstr("401"), HasSubstr("WWW-Authenticate: Bearer"),
                        Not(HasSubstr("0123")), Not(HasSubstr("x.gguf"))))
          << target << " " << field;
    }
  }
  EXPECT_EQ(serving.server->requests(), 0u);
  EXPECT_THAT(Get(serving, "/x.gguf", "Authorization: Bearer " + token + "\r\n"),
              HasSubstr("0123456789"));
}

TEST(FileServerTest, WithoutASecretOnlyThisMachineIsServed) {
  const TemporaryDirectory directory;
  directory.Write("x.gguf", "0123456789");
  FileServerOptions options;
  options.directory = directory.path();
  options.host = "0.0.0.0";
  EXPECT_THAT(MessageOf(FileServer::Listen(options).status()), HasSubstr("--secret-file"));
  const Serving serving(directory.path());
  for (const char* host :
       {"evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "[::2]"}) {
    EXPECT_THAT(Exchange(serving.server->port(), std::string("GET /x.gguf HTTP/1.1\r\nHost: ") +
                                                     host + "\r\nConnection: close\r\n\r\n"),
                HasSubstr("403"))
        << host;
  }
  for (const char* host : {"localhost", "localhost:80", "127.0.0.1:1", "[::1]:7"}) {
    EXPECT_THAT(Exchange(serving.server->port(), std::string("GET /x.gguf HTTP/1.1\r\nHost: ") +
                                                     host + "\r\nConnection: close\r\n\r\n"),
                HasSubstr("200 OK"))
        << host;
  }
  options.host = "127.0.0.1";
  options.port = serving.server->port();
  EXPECT_THAT(MessageOf(FileServer::Listen(options).status()), HasSubstr("cannot listen"));
}

void SendByteByByte(int fd, const std::atomic<bool>& enough) {
  while (!enough && send(fd, "G", 1, MSG_NOSIGNAL) > 0)
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
}

TEST(FileServerTest, SlowClientsHoldUpNobodyForLong) {
  const TemporaryDirectory directory;
  directory.Write("x.gguf", std::string(64 << 20, 'x'));
  FileServerOptions options;
  options.directory = directory.path();
  options.most_connections = 2;
  options.request_ms = 500;
  options.piece_ms = 500;
  options.idle_ms = 500;
  const auto server = FileServer::Listen(options).value();
  server->Serve();
  std::vector<int> slow;
  for (int i = 0; i < 2; ++i) slow.push_back(ConnectTo(server->port()));
  // One never ends its request, one never reads its answer.
  std::atomic<bool> enough{false};
  std::jthread dripping([&] { SendByteByByte(slow[0], enough); });
  const std::string request = "GET /x.gguf HTTP/1.1\r\nHost: localhost\r\n\r\n";
  ASSERT_GT(send(slow[1], request.data(), request.size(), MSG_NOSIGNAL), 0);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_THAT(
      Exchange(server->port(), "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
      HasSubstr("x.gguf"));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  enough = true;
  dripping.join();
  for (const int fd : slow) close(fd);
}

TEST(FileServerTest, ManyRanksAreServedAtOnce) {
  const TemporaryDirectory directory;
  directory.Write("x.gguf", "0123456789");
  const Serving serving(directory.path());
  // Sixteen ranks keep all their connections open; the next one's answer comes without a wait.
  std::vector<int> open;
  const std::string request = "GET /x.gguf HTTP/1.1\r\nHost: localhost\r\n\r\n";
  for (int i = 0; i < 16 * kHttpConnections; ++i) {
    open.push_back(ConnectTo(serving.server->port()));
    ASSERT_GT(send(open.back(), request.data(), request.size(), MSG_NOSIGNAL), 0);
  }
  const auto start = std::chrono::steady_clock::now();
  EXPECT_THAT(Get(serving, "/x.gguf"), HasSubstr("0123456789"));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(2));
  char part[1000];
  for (const int fd : open) {
    EXPECT_GT(read(fd, part, sizeof part), 0);
    close(fd);
  }
}

TEST(FileServerTest, StrangersTakeAQuarterOfTheConnectionsAndPushEachOtherOut) {
  const TemporaryDirectory directory;
  directory.Write("x.gguf", "0123456789");
  FileServerOptions options;
  options.directory = directory.path();
  options.secret = kSecret;
  options.most_connections = 8;
  options.request_ms = 1500;
  const auto server = FileServer::Listen(options).value();
  server->Serve();
  const std::string request =
      "GET /x.gguf HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer " + FileToken(kSecret) + "\r\n";
  // Who has proven the secret stays, whatever comes then.
  const int known = ConnectTo(server->port());
  const std::string kept = request + "\r\n";
  char part[1000];
  const auto ask = [&] {
    EXPECT_GT(send(known, kept.data(), kept.size(), MSG_NOSIGNAL), 0);
    EXPECT_GT(read(known, part, sizeof part), 0);
  };
  ask();
  std::vector<int> silent;
  for (int i = 0; i < 3; ++i) silent.push_back(ConnectTo(server->port()));
  const auto start = std::chrono::steady_clock::now();
  ask();
  // Two may stay without a word; the third pushed the first out, and who comes now the second.
  EXPECT_THAT(Exchange(server->port(), request + "Connection: close\r\n\r\n"),
              HasSubstr("0123456789"));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(1300));
  pollfd entry{silent[0], POLLIN, 0};
  EXPECT_EQ(poll(&entry, 1, 5000), 1);
  EXPECT_LE(read(silent[0], part, sizeof part), 0) << "dropped";
  std::this_thread::sleep_for(std::chrono::milliseconds(1600));
  ask();
  for (const int fd : silent) close(fd);
  close(known);
}

TEST(FileServerTest, ItEndsWhileClientsAreServed) {
  const TemporaryDirectory directory;
  directory.Write("x.gguf", std::string(64 << 20, 'x'));
  auto serving = std::make_unique<Serving>(directory.path());
  const int port = serving->server->port();
  std::string answer;
  std::jthread client([&] {
    const int fd = ConnectTo(port);
    const std::string request = "GET /x.gguf HTTP/1.1\r\nHost: localhost\r\n\r\n";
    EXPECT_GT(send(fd, request.data(), request.size(), MSG_NOSIGNAL), 0);
    char part[4096];
    EXPECT_GT(read(fd, part, sizeof part), 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    while (read(fd, part, sizeof part) > 0) continue;
    close(fd);
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(150));
  const auto start = std::chrono::steady_clock::now();
  serving.reset();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(2));
}

}  // namespace
}  // namespace lockstep
