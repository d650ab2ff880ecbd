// Pieces of a file that are asked for by one request.
#include <cstdio>

#include "absl/strings/str_format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/base/digest.h"
#include "runtime/weights/http_answer.h"
#include "runtime/weights/http_files.h"
#include "tests/support/fake_http.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using testing::Contents;
using testing::FakeHttpServer;
using testing::FakeRequest;
using ::testing::HasSubstr;
using testing::HttpPart;
using testing::HttpText;
using testing::kFileBytes;
using testing::Quick;

// The answer with a digest of the body that it has now.
std::string WithDigest(std::string answer) {
  const std::string body = answer.substr(answer.find("\r\n\r\n") + 4);
  const std::string line =
      absl::StrFormat("%s: %016x\r\n", kDigestHeader, Digest64(std::as_bytes(std::span(body))));
  return answer.insert(answer.find("\r\n") + 2, line);
}

// x.gguf on a server that offers strided ranges, whose answers to them `spoil` may change.
struct StridedFile {
  explicit StridedFile(std::function<std::string(std::string)> spoil)
      : contents(Contents()), server([this, spoil](const FakeRequest& request) {
          const size_t at = request.head.find("Range: strided=");
          if (at == std::string::npos) {
            std::string whole = HttpPart(contents, request);
            return whole.insert(whole.find("\r\n") + 2, "Accept-Ranges: bytes, strided\r\n");
          }
          size_t first = 0, bytes = 0, stride = 0, count = 0;
          EXPECT_EQ(std::sscanf(request.head.c_str() + at, "Range: strided=%zu-%zu-%zu-%zu", &first,
                                &bytes, &stride, &count),
                    4);
          firsts.push_back(first);
          std::string body;
          for (size_t i = 0; i < count; ++i) body += contents.substr(first + i * stride, bytes);
          return spoil(HttpText(
              "206 Partial Content",
              absl::StrFormat("Content-Length: %d\r\nContent-Range: strided %d-%d-%d-%d/%d\r\n",
                              body.size(), first, bytes, stride, count, contents.size()),
              body));
        }) {
    files = std::move(HttpFiles::Connect(server.url() + "/x.gguf", Quick()).value());
    file = files->Open("x.gguf").value();
  }
  Status Read(const StridedRange& range) {
    got.assign(range.total(), '\0');
    return file->ReadStrided(range, std::as_writable_bytes(std::span(got)));
  }
  std::string Expected(const StridedRange& range) const {
    std::string text;
    for (uint64_t i = 0; i < range.count; ++i)
      text += contents.substr(range.offset + i * range.stride, range.bytes);
    return text;
  }

  const std::string contents;
  std::vector<size_t> firsts;
  FakeHttpServer server;
  std::unique_ptr<HttpFiles> files;
  std::unique_ptr<RandomAccessFile> file;
  std::string got;
};

TEST(HttpStridedTest, PiecesAloneAreAskedForWhereTheyAreOffered) {
  StridedFile one([](const std::string& answer) { return answer; });
  ASSERT_TRUE(one.file->reads_strided());
  const StridedRange range{1'500'000, 1000, 7000, 200};
  const Status status = one.Read(range);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(one.got == one.Expected(range));
  EXPECT_EQ(one.files->bytes_received(), (1u << 20) + 200'000u);
  EXPECT_EQ(one.server.requests(), 2);
  EXPECT_THAT(MessageOf(one.Read({kFileBytes - 7000, 1000, 7000, 2})), HasSubstr("ends at byte"));
}

TEST(HttpStridedTest, PiecesAreTakenUpWhereTheyBroke) {
  StridedFile one([](const std::string& answer) {
    return answer.substr(0, answer.find("\r\n\r\n") + 4 + 90'500);  // the last half of a piece
  });
  const StridedRange range{1'500'000, 1000, 7000, 200};
  const Status status = one.Read(range);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(one.got == one.Expected(range));
  EXPECT_EQ(one.firsts, (std::vector<size_t>{1'500'000, 2'130'000, 2'760'000}));
}

TEST(HttpStridedTest, PiecesThatAlwaysBreakAreGivenUp) {
  StridedFile one([](const std::string& answer) {
    return answer.substr(0, answer.find("\r\n\r\n") + 4 + 90'000);
  });
  EXPECT_THAT(MessageOf(one.Read({1'500'000, 100'000, 150'000, 3})),
              HasSubstr("gave up after 4 tries"));
}

TEST(HttpStridedTest, WhatLiesCloseTogetherIsReadWithItsNeighbours) {
  StridedFile one([](const std::string& answer) { return answer; });
  for (const uint64_t offset : {1'600'000, 1'600'100, 1'610'000}) {
    const StridedRange range{offset, 10, 100, 50};
    const Status status = one.Read(range);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_TRUE(one.got == one.Expected(range));
  }
  EXPECT_EQ(one.server.requests(), 2);  // the first bytes, and one block
  EXPECT_TRUE(one.firsts.empty());
}

TEST(HttpStridedTest, OtherPiecesThanAskedForAreNamed) {
  for (const auto& [from, to, error] :
       std::vector<std::tuple<std::string, std::string, std::string>>{
           {"strided 1500000", "strided 1500001", "was asked for 'strided="},
           {"-1000-7000", "-1000-7001", "was asked for 'strided="},
           {"strided 1", "bytes 1", "was asked for 'strided="},
           {"/3145728", "/3145729", "changed meanwhile"},
           {"/3145728", "/*", "was asked for 'strided="},
           {"Length: 200000", "Length: 199000", "announces 199000 bytes"},
           {"206 Partial Content", "200 OK", "something between"}}) {
    StridedFile one([&](std::string answer) {
      const size_t at = answer.find(from);
      EXPECT_NE(at, std::string::npos) << from;
      return answer.replace(at, from.size(), to);
    });
    EXPECT_THAT(MessageOf(one.Read({1'500'000, 1000, 7000, 200})),
                AllOf(HasSubstr(error), HasSubstr("x.gguf")))
        << to;
  }
}

TEST(Digests, BytesThatChangeOnTheirWayAreAskedForAgain) {
  int answers = 0;
  StridedFile remote([&](std::string answer) {
    answer = WithDigest(answer);
    if (answers++ == 0) answer.back() ^= 1;
    return answer;
  });
  const StridedRange range{100, 1000, 5000, 20};
  ASSERT_TRUE(remote.Read(range).ok());
  EXPECT_TRUE(remote.got == remote.Expected(range));
  EXPECT_THAT(remote.firsts, ::testing::ElementsAre(100, 100));
}

TEST(Digests, BytesThatAlwaysChangeAreAnErrorThatSaysSo) {
  StridedFile remote([](std::string answer) {
    answer = WithDigest(answer);
    answer[answer.size() / 2] ^= 4;
    return answer;
  });
  EXPECT_THAT(MessageOf(remote.Read({100, 1000, 5000, 20})),
              AllOf(HasSubstr("x.gguf"), HasSubstr("changes data"), HasSubstr("gave up")));
}

TEST(Digests, PartOfARangeIsNotBelieved) {
  int answers = 0;
  StridedFile remote([&](const std::string& answer) {
    const std::string whole = WithDigest(answer);
    return answers++ == 0 ? whole.substr(0, whole.size() - 3000) : whole;
  });
  const StridedRange range{100, 1000, 5000, 20};
  ASSERT_TRUE(remote.Read(range).ok());
  EXPECT_TRUE(remote.got == remote.Expected(range));
  EXPECT_THAT(remote.firsts, ::testing::ElementsAre(100, 100));
}

TEST(Digests, TheFirstBytesOfAFileHaveOneToo) {
  const std::string contents = Contents();
  FakeHttpServer server([&](const FakeRequest& request) {
    EXPECT_TRUE(request.Has("Lockstep-Want-Digest: xxh3\r\n"));
    std::string answer = WithDigest(HttpPart(contents, request));
    if (request.number == 0) answer.back() ^= 8;
    return answer;
  });
  const auto files = std::move(HttpFiles::Connect(server.url() + "/x.gguf", Quick()).value());
  const auto file = files->Open("x.gguf").value();
  std::string got(1000, '\0');
  ASSERT_TRUE(file->Read(5, std::as_writable_bytes(std::span(got))).ok());
  EXPECT_EQ(got, contents.substr(5, 1000));
  EXPECT_GE(server.requests(), 2);
}

}  // namespace
}  // namespace lockstep
