// Reading from servers that misbehave: what passes is overcome, what does not is named.
#include "runtime/weights/http_files.h"

#include <chrono>
#include <random>
#include <thread>

#include "absl/strings/str_format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/fake_http.h"
#include "tests/support/seed.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using testing::Contents;
using testing::FakeHttpServer;
using testing::FakeRequest;
using ::testing::HasSubstr;
using testing::HttpNotFound;
using testing::HttpPart;
using testing::HttpText;
using testing::kFileBytes;
using ::testing::Not;
using testing::Quick;

// One file, x.gguf, whose answers from the second request on are the handler's.
struct OneFile {
  explicit OneFile(FakeHttpServer::Handler later, HttpOptions options = Quick())
      : contents(Contents()), server([this, later](const FakeRequest& request) {
          return request.number == 0 ? HttpPart(contents, request) : later(request);
        }) {
    auto connected = HttpFiles::Connect(server.url() + "/x.gguf", options);
    EXPECT_TRUE(connected.ok()) << connected.status();
    files = std::move(*connected);
    file = files->Open("x.gguf").value();
  }

  // Reads a part that is not yet there.
  Status Read(uint64_t offset = 2'000'000, size_t bytes = 500'000) {
    got.assign(bytes, '\0');
    return file->Read(offset, std::as_writable_bytes(std::span(got)));
  }
  void ExpectRead(uint64_t offset = 2'000'000, size_t bytes = 500'000) {
    const Status status = Read(offset, bytes);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(got == contents.substr(offset, bytes));
  }
  void ExpectError(const std::string& text, int requests) {
    EXPECT_THAT(MessageOf(Read()), AllOf(HasSubstr(text), HasSubstr("x.gguf")));
    EXPECT_EQ(server.requests(), requests);
  }

  const std::string contents;
  FakeHttpServer server;
  std::unique_ptr<HttpFiles> files;
  std::unique_ptr<RandomAccessFile> file;
  std::string got;
};

TEST(HttpFilesTest, RangesOfAFileAreItsBytes) {
  OneFile one([&](const FakeRequest& request) { return HttpPart(one.contents, request); });
  EXPECT_EQ(one.file->size_bytes(), kFileBytes);
  std::mt19937_64 random(testing::TestSeed());
  for (int i = 0; i < 60; ++i) {
    const uint64_t offset = random() % kFileBytes;
    const size_t bytes = random() % std::min<size_t>(kFileBytes - offset + 1, 200'000);
    one.ExpectRead(offset, bytes);
  }
  one.ExpectRead(kFileBytes - 1, 1);
  EXPECT_THAT(MessageOf(one.Read(kFileBytes - 1, 2)), HasSubstr("ends at byte"));
}

TEST(HttpFilesTest, SmallReadsShareRequests) {
  OneFile one([&](const FakeRequest& request) { return HttpPart(one.contents, request); });
  for (uint64_t offset = 0; offset + 100 < kFileBytes; offset += 1000) one.ExpectRead(offset, 100);
  // The first request brought 1 MiB, and the other 2 MiB are 8 blocks.
  EXPECT_EQ(one.server.requests(), 9);
  EXPECT_LE(one.files->bytes_received(), kFileBytes);
}

TEST(HttpFilesTest, PartsTogetherAreMergedAcrossSmallGapsOnly) {
  OneFile one([&](const FakeRequest& request) { return HttpPart(one.contents, request); });
  std::vector<std::string> out(4, std::string(1000, '\0'));
  const uint64_t offsets[] = {2'500'000, 1'500'000, 1'560'000, 2'100'000};
  std::vector<FilePart> parts;
  for (size_t i = 0; i < out.size(); ++i)
    parts.push_back({offsets[i], std::as_writable_bytes(std::span(out[i]))});
  const Status status = one.file->ReadParts(parts);
  ASSERT_TRUE(status.ok()) << status;
  for (size_t i = 0; i < out.size(); ++i) EXPECT_EQ(out[i], one.contents.substr(offsets[i], 1000));
  EXPECT_EQ(one.server.requests(), 4);
  EXPECT_EQ(one.files->bytes_received(), (1 << 20) + 61'000 + 1000 + 1000);
}

TEST(HttpFilesTest, ALostConnectionIsTakenUpWhereItBroke) {
  std::vector<size_t> begins;
  OneFile one([&](const FakeRequest& request) {
    begins.push_back(request.first);
    const std::string whole = HttpPart(one.contents, request);
    const size_t head = whole.find("\r\n\r\n") + 4;
    // 100 000 bytes at a time.
    return whole.substr(0, std::min(whole.size(), head + 100'000));
  });
  one.ExpectRead(2'000'000, 450'000);
  EXPECT_EQ(begins, (std::vector<size_t>{2'000'000, 2'100'000, 2'200'000, 2'300'000, 2'400'000}));
}

TEST(HttpFilesTest, WithoutTheOfferPiecesAreRead) {
  OneFile one([&](const FakeRequest& request) { return HttpPart(one.contents, request); });
  EXPECT_FALSE(one.file->reads_strided());
  std::string got(2000, '\0');
  const Status status =
      one.file->ReadStrided({2'000'000, 1000, 7000, 2}, std::as_writable_bytes(std::span(got)));
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(got == one.contents.substr(2'000'000, 1000) + one.contents.substr(2'007'000, 1000));
}

TEST(HttpFilesTest, AnswersThatEndAtOnceAreATruncatedBody) {
  OneFile one([&](const FakeRequest& request) {
    const std::string whole = HttpPart(one.contents, request);
    return whole.substr(0, whole.find("\r\n\r\n") + 4);
  });
  one.ExpectError("ended after 0 of 500000 bytes", 5);
  EXPECT_THAT(MessageOf(one.Read()), HasSubstr("gave up after 4 tries"));
}

TEST(HttpFilesTest, ServersInTroubleAreAskedAgain) {
  for (const char* status :
       {"503 Service Unavailable", "500 Oops", "429 Too Many Requests", "408 Request Timeout"}) {
    OneFile one([&](const FakeRequest& request) {
      return request.number < 3 ? HttpText(status, "Content-Length: 4\r\n", "wait")
                                : HttpPart(one.contents, request);
    });
    one.ExpectRead();
    EXPECT_EQ(one.server.requests(), 4) << status;
  }
}

TEST(HttpFilesTest, RetryAfterIsHonoured) {
  OneFile one([&](const FakeRequest& request) {
    return request.number == 1
               ? HttpText("429 Too Many Requests", "Retry-After: 1\r\nContent-Length: 0\r\n", "")
               : HttpPart(one.contents, request);
  });
  const auto start = std::chrono::steady_clock::now();
  one.ExpectRead();
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(990));
}

TEST(HttpFilesTest, TriesHaveAnEnd) {
  OneFile one([&](const FakeRequest&) {
    return HttpText("503 Service Unavailable", "Content-Length: 0\r\n", "");
  });
  one.ExpectError("status 503; gave up after 4 tries", 5);
}

TEST(HttpFilesTest, AServerThatIgnoresRangesIsNamed) {
  OneFile one([&](const FakeRequest&) {
    return HttpText("200 OK", "Content-Length: " + std::to_string(kFileBytes) + "\r\n",
                    one.contents);
  });
  one.ExpectError("ignores ranges", 2);
  FakeHttpServer whole([&](const FakeRequest&) {
    return HttpText("200 OK", "Content-Length: " + std::to_string(kFileBytes) + "\r\n",
                    one.contents);
  });
  EXPECT_THAT(MessageOf(HttpFiles::Connect(whole.url() + "/x.gguf", Quick()).status()),
              HasSubstr("ignores ranges"));
  FakeHttpServer endless([&](const FakeRequest&) { return HttpText("200 OK", "", one.contents); });
  EXPECT_THAT(MessageOf(HttpFiles::Connect(endless.url() + "/x.gguf", Quick()).status()),
              HasSubstr("ignores ranges"));
}

TEST(HttpFilesTest, OtherRangesThanAskedForAreNamed) {
  for (const char* range :
       {"bytes 0-499999/3145728", "bytes 2000000-2499998/3145728", "bytes 2000000-2499999/*",
        "bytes 2000000-1/3145728", "lines 1-2/3", ""}) {
    OneFile one([&](const FakeRequest& request) {
      const std::string body = one.contents.substr(request.first, 500'000);
      return HttpText("206 Partial Content",
                      std::string("Content-Length: 500000\r\nContent-Range: ") + range + "\r\n",
                      body);
    });
    one.ExpectError("answered with Content-Range", 2);
  }
}

TEST(HttpFilesTest, ALengthThatDoesNotFitItsRangeIsNamed) {
  const std::string answer =
      HttpText("206 Partial Content",
               "Content-Length: 400000\r\nContent-Range: bytes 2000000-2499999/3145728\r\n",
               std::string(400'000, 'x'));
  OneFile one([&](const FakeRequest&) { return answer; });
  one.ExpectError("announces 400000 bytes (Content-Length) for a range of 500000", 2);
}

TEST(HttpFilesTest, MoreThanWasAnnouncedIsNamed) {
  const std::string answer =
      HttpText("206 Partial Content", "Content-Range: bytes 2000000-2499999/3145728\r\n",
               std::string(600'000, 'x'));
  OneFile one([&](const FakeRequest&) { return answer; });
  one.ExpectError("sends more than the 500000 bytes", 2);
}

TEST(HttpFilesTest, AFileThatChangesIsNamed) {
  OneFile tag(
      [&](const FakeRequest& request) { return HttpPart(tag.contents, request, "\"two\""); });
  tag.ExpectError("its ETag was \"one\" and now is \"two\"", 2);
  OneFile size(
      [&](const FakeRequest& request) { return HttpPart(size.contents + "more", request); });
  size.ExpectError("had 3145728 bytes and now has 3145732", 2);
  const std::string answer =
      HttpText("416 Range Not Satisfiable", "Content-Range: bytes */100\r\n", "");
  OneFile shorter([&](const FakeRequest&) { return answer; });
  shorter.ExpectError("became shorter", 2);
  OneFile gone([&](const FakeRequest&) { return HttpNotFound(); });
  gone.ExpectError("is not there (status 404)", 2);
}

TEST(HttpFilesTest, CompressedAnswersAreRefused) {
  OneFile one([&](const FakeRequest& request) {
    std::string answer = HttpPart(one.contents, request);
    return answer.insert(answer.find("ETag"), "Content-Encoding: gzip\r\n");
  });
  one.ExpectError("Content-Encoding gzip", 2);
}

TEST(HttpFilesTest, ASilentServerIsGivenUp) {
  OneFile one([&](const FakeRequest& request) {
    one.server.Sleep(4000);
    return HttpPart(one.contents, request);
  });
  // Three seconds at least, four tries: bounded by the stall limit, not by the server.
  EXPECT_THAT(MessageOf(one.Read()), HasSubstr("nothing came for 1 s"));
}

TEST(HttpFilesTest, AStopEndsEveryWait) {
  std::atomic<bool> stop{false};
  HttpOptions options = Quick();
  options.stall_timeout_ms = 60'000;
  options.stop = [&] { return stop.load(); };
  OneFile one(
      [&](const FakeRequest& request) {
        one.server.Sleep(20'000);
        return HttpPart(one.contents, request);
      },
      options);
  const auto start = std::chrono::steady_clock::now();
  const std::jthread stopper([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    stop = true;
  });
  EXPECT_EQ(KindOf(one.Read()), ErrorKind::kInterrupted);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(3));
}

TEST(HttpFilesTest, TheTokenGoesToNoOtherHost) {
  const std::string contents = Contents();
  std::atomic<bool> seen{false};
  FakeHttpServer other([&](const FakeRequest& request) {
    if (request.Has("Bearer") || request.Has("secret-token")) seen = true;
    return HttpPart(contents, request);
  });
  std::atomic<int> with_token{0};
  FakeHttpServer first([&](const FakeRequest& request) {
    with_token += request.Has("Authorization: Bearer secret-token") ? 1 : 0;
    return HttpText(
        "302 Found",
        "Location: " + other.url() + request.path + "?signed=1\r\nContent-Length: 0\r\n", "");
  });
  HttpOptions options = Quick();
  options.token = "secret-token";
  const auto files = HttpFiles::Connect(first.url() + "/x.gguf", options).value();
  const auto file = files->Open("x.gguf").value();
  std::string got(500'000, '\0');
  for (const uint64_t offset : {1'500'000, 2'000'000}) {
    ASSERT_TRUE(file->Read(offset, std::as_writable_bytes(std::span(got))).ok());
    EXPECT_TRUE(got == contents.substr(offset, got.size()));
  }
  EXPECT_FALSE(seen);
  EXPECT_EQ(with_token, 1);
  EXPECT_EQ(first.requests(), 1) << "the redirect's target is asked directly";
  EXPECT_EQ(other.requests(), 3);
}

TEST(HttpFilesTest, ARedirectThatExpiresIsAskedForAgain) {
  const std::string contents = Contents();
  std::atomic<int> answered{0};
  FakeHttpServer other([&](const FakeRequest& request) {
    if (request.Has("pass=0") && answered++ > 0)
      return HttpText("403 Forbidden", "Content-Length: 7\r\n", "expired");
    return HttpPart(contents, request);
  });
  FakeHttpServer first([&](const FakeRequest& request) {
    return HttpText("302 Found",
                    "Location: " + other.url() + "/y?pass=" + std::to_string(request.number) +
                        "\r\nContent-Length: 0\r\n",
                    "");
  });
  const auto files = HttpFiles::Connect(first.url() + "/x.gguf", Quick()).value();
  const auto file = files->Open("x.gguf").value();
  std::string got(500'000, '\0');
  const Status status = file->Read(2'000'000, std::as_writable_bytes(std::span(got)));
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(got == contents.substr(2'000'000, got.size()));
  EXPECT_EQ(first.requests(), 2);
}

TEST(HttpFilesTest, ARedirectThatExpiresUnderManyReadersIsAskedForByEach) {
  constexpr int kReaders = 8;
  const std::string contents = Contents();
  std::atomic<int> expired{0};
  FakeHttpServer* self = nullptr;
  FakeHttpServer other([&](const FakeRequest& request) {
    if (!request.Has("pass=0") || request.first == 0) return HttpPart(contents, request);
    // All of them are in flight when the first one is refused.
    ++expired;
    for (int i = 0; i < 500 && expired < kReaders; ++i) self->Sleep(10);
    return HttpText("403 Forbidden", "Content-Length: 7\r\n", "expired");
  });
  self = &other;
  FakeHttpServer first([&](const FakeRequest& request) {
    return HttpText("302 Found",
                    "Location: " + other.url() + "/y?pass=" + std::to_string(request.number) +
                        "\r\nContent-Length: 0\r\n",
                    "");
  });
  HttpOptions options = Quick();
  options.connections = kReaders;
  options.stall_timeout_ms = 10'000;
  const auto files = HttpFiles::Connect(first.url() + "/x.gguf", options).value();
  const auto file = files->Open("x.gguf").value();
  std::vector<std::jthread> readers;
  for (size_t i = 0; i < kReaders; ++i) {
    readers.emplace_back([&, i] {
      const uint64_t offset = 1'100'000 + i * 200'000;
      std::string got(200'000, '\0');
      const Status status = file->Read(offset, std::as_writable_bytes(std::span(got)));
      EXPECT_TRUE(status.ok()) << status;
      EXPECT_TRUE(got == contents.substr(offset, got.size()));
    });
  }
  readers.clear();
  EXPECT_EQ(expired, kReaders);
  EXPECT_LE(first.requests(), 1 + kReaders);
}

TEST(HttpFilesTest, WaitingForAConnectionIsNoStall) {
  HttpOptions options = Quick();
  options.connections = 1;
  options.tries = 1;
  OneFile one(
      [&](const FakeRequest& request) {
        one.server.Sleep(600);
        return HttpPart(one.contents, request);
      },
      options);
  std::vector<std::jthread> readers;
  for (int i = 0; i < 4; ++i) {
    readers.emplace_back([&] {
      std::string got(100'000, '\0');
      const Status status = one.file->Read(2'000'000, std::as_writable_bytes(std::span(got)));
      EXPECT_TRUE(status.ok()) << status;
    });
  }
}

TEST(HttpFilesTest, EndlessRedirectsEnd) {
  FakeHttpServer server([&](const FakeRequest& request) {
    return HttpText("302 Found", "Location: " + request.path + "x\r\nContent-Length: 0\r\n", "");
  });
  EXPECT_THAT(MessageOf(HttpFiles::Connect(server.url() + "/x.gguf", Quick()).status()),
              HasSubstr("redirect"));
  EXPECT_LE(server.requests(), 6);
}

TEST(HttpFilesTest, TheIndexNamesTheFilesOfAServerWithoutAList) {
  const std::string index =
      R"({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors", "c": "m-1.safetensors"}})";
  std::vector<std::string> asked;
  std::mutex mutex;
  FakeHttpServer server([&](const FakeRequest& request) {
    const std::lock_guard lock(mutex);
    asked.push_back(request.path);
    if (request.path == "/dir/model.safetensors.index.json?k=v") return HttpPart(index, request);
    if (request.path == "/dir/config.json?k=v") return HttpPart("{}", request);
    if (request.path == "/dir/empty.json?k=v") return HttpPart("", request);
    if (request.path == "/dir/?k=v") return HttpText("200 OK", "", "<html>files</html>");
    return HttpNotFound();
  });
  const auto files = HttpFiles::Connect(server.url() + "/dir/?k=v", Quick()).value();
  EXPECT_EQ(files->directory(), server.url() + "/dir");
  EXPECT_EQ(files->List(), (std::vector<std::string>{"m-1.safetensors", "m-2.safetensors"}));
  const MountedFiles mounted(files->directory(), *files);
  EXPECT_EQ(ReadTextFile(files->directory() + "/config.json").value(), "{}");
  EXPECT_EQ(ReadTextFile(files->directory() + "/empty.json").value(), "");
  EXPECT_TRUE(FileExists(files->directory() + "/config.json"));
  EXPECT_FALSE(FileExists(files->directory() + "/tokenizer.json"));
  EXPECT_FALSE(FileExists(files->directory() + "/tokenizer.json"));
  EXPECT_EQ(std::count(asked.begin(), asked.end(), "/dir/tokenizer.json?k=v"), 1);
  EXPECT_TRUE(IsDirectory(files->directory()));
  EXPECT_FALSE(IsDirectory(server.url()));
}

TEST(HttpFilesTest, NamesThatLeadElsewhereAreRefused) {
  for (const char* list : {R"({"lockstep": "files", "files": [{"name": "../etc/passwd"}]})",
                           R"({"lockstep": "files", "files": [{"name": ".hidden"}]})",
                           R"({"lockstep": "files", "files": [{"name": 7}]})",
                           R"({"lockstep": "files", "files": ["config.json"]})"}) {
    FakeHttpServer server([&](const FakeRequest& request) {
      std::string answer = HttpPart(list, request);
      return answer.insert(answer.find("ETag"), "Content-Type: application/json\r\n");
    });
    EXPECT_THAT(MessageOf(HttpFiles::Connect(server.url(), Quick()).status()),
                HasSubstr("no file's name"))
        << list;
  }
}

// Of a server that has an index and nothing else.
std::string IndexError(const std::string& index) {
  FakeHttpServer server([&](const FakeRequest& request) {
    return request.path == "/model.safetensors.index.json" ? HttpPart(index, request)
                                                           : HttpNotFound();
  });
  return MessageOf(HttpFiles::Connect(server.url(), Quick()).status());
}

TEST(HttpFilesTest, AnIndexIsReadAsOneOfADirectoryIs) {
  for (const char* name : {"../b.safetensors", R"(..\\b.safetensors)", ".b", ""}) {
    EXPECT_THAT(IndexError(absl::StrFormat(R"({"weight_map": {"a": "%s"}})", name)),
                AllOf(HasSubstr("/model.safetensors.index.json: weight_map.a is not a file's name"),
                      HasSubstr("no file of this directory")))
        << name;
  }
  EXPECT_THAT(IndexError(R"({"weight_map": {"a": "b", "a": "c"}})"), HasSubstr("twice, a;"));
  EXPECT_THAT(IndexError("{}"), HasSubstr("no JSON object with a weight_map"));
  EXPECT_THAT(IndexError(std::string((64 << 20) + 1, ' ')),
              HasSubstr("67108865 bytes, too many for such a file"));
}

TEST(HttpFilesTest, WhatIsNoUrlOfFilesIsRefused) {
  for (const auto& [url, text] :
       std::vector<std::pair<std::string, std::string>>{{"ftp://host/x", "is no URL"},
                                                        {"host/x", "is no URL"},
                                                        {"http://", "is no URL"},
                                                        {"http://me:word@host/", "password"},
                                                        {"http://host/x#y", "'#'"}}) {
    const Status status = HttpFiles::Connect(url, Quick()).status();
    EXPECT_EQ(KindOf(status), ErrorKind::kUsage) << url;
    EXPECT_THAT(MessageOf(status), AllOf(HasSubstr(text), Not(HasSubstr("word@"))));
  }
  FakeHttpServer nothing([](const FakeRequest&) { return HttpNotFound(); });
  EXPECT_THAT(MessageOf(HttpFiles::Connect(nothing.url(), Quick()).status()),
              HasSubstr("resolve/main"));
  EXPECT_THAT(MessageOf(HttpFiles::Connect(nothing.url() + "/x.gguf", Quick()).status()),
              HasSubstr("there is no such file"));
}

TEST(HttpFilesTest, WhoIsNotThereIsToldSoonAtFirst) {
  std::string url;
  {
    url = FakeHttpServer([](const FakeRequest&) { return ""; }).url();
  }
  const auto start = std::chrono::steady_clock::now();
  EXPECT_THAT(MessageOf(HttpFiles::Connect(url, HttpOptions()).status()),
              AllOf(HasSubstr("connect"), HasSubstr("gave up after 2 tries")));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

}  // namespace
}  // namespace lockstep
