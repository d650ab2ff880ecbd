#include "collectives/handshake.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "collectives/control.h"
#include "tests/support/seed.h"

namespace lockstep {
namespace {

Hello SomeHello() {
  Hello hello;
  hello.rank = 3;
  hello.size = 5;
  hello.pid = 4711;
  hello.host = "spark-4";
  hello.machine = "b1946ac9";
  hello.settings = {{"source version", "0.1.0", "install one build"},
                    {"shares", "3,2", "use one YAML"}};
  return hello;
}

Verdict SomeVerdict() {
  Verdict verdict;
  verdict.accepted = true;
  verdict.session = RandomChallenge();
  verdict.members = {{0, 10, "a", "x", "10.0.0.1"}, {1, 11, "b", "y", "10.0.0.2"}};
  return verdict;
}

TEST(Hmac, MatchesRfc4231) {
  const std::string text = "what do ya want for nothing?";
  const Proof proof = HmacSha256("Jefe", std::as_bytes(std::span(text)));
  const unsigned char expected[32] = {0x5b, 0xdc, 0xc1, 0x46, 0xbf, 0x60, 0x75, 0x4e,
                                      0x6a, 0x04, 0x24, 0x26, 0x08, 0x95, 0x75, 0xc7,
                                      0x5a, 0x00, 0x3f, 0x08, 0x9d, 0x27, 0x39, 0x83,
                                      0x9d, 0xec, 0x58, 0xb9, 0x64, 0xec, 0x38, 0x43};
  EXPECT_EQ(std::memcmp(proof.data(), expected, sizeof(expected)), 0);
}

TEST(Hmac, AnEmptyKeyIsAKey) {
  EXPECT_EQ(HmacSha256("", {}), HmacSha256("", {}));
  EXPECT_NE(HmacSha256("", {}), HmacSha256("k", {}));
}

TEST(Handshake, WhatIsWrittenIsRead) {
  const StatusOr<Hello> hello = ParseHello(EncodeHello(SomeHello()));
  ASSERT_TRUE(hello.ok()) << hello.status();
  EXPECT_EQ(hello->rank, 3u);
  EXPECT_EQ(hello->host, "spark-4");
  ASSERT_EQ(hello->settings.size(), 2u);
  EXPECT_EQ(hello->settings[1].value, "3,2");
  const Verdict verdict = SomeVerdict();
  const StatusOr<Verdict> read = ParseVerdict(EncodeVerdict(verdict));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->session, verdict.session);
  EXPECT_EQ(read->members[1].address, "10.0.0.2");
}

TEST(Handshake, EveryShorteningIsRefused) {
  const std::vector<std::byte> hello = EncodeHello(SomeHello());
  const std::vector<std::byte> verdict = EncodeVerdict(SomeVerdict());
  for (size_t size = 0; size < hello.size(); ++size)
    EXPECT_FALSE(ParseHello(std::span(hello).first(size)).ok());
  for (size_t size = 0; size < verdict.size(); ++size) {
    EXPECT_FALSE(ParseVerdict(std::span(verdict).first(size)).ok());
  }
}

TEST(Handshake, TrailingBytesAndAbsurdCountsAreRefused) {
  std::vector<std::byte> bytes = EncodeHello(SomeHello());
  bytes.push_back(std::byte{0});
  EXPECT_FALSE(ParseHello(bytes).ok());
  Hello many = SomeHello();
  many.settings.resize(1000);
  EXPECT_FALSE(ParseHello(EncodeHello(many)).ok());
  Verdict disordered = SomeVerdict();
  disordered.members[1].rank = 7;
  EXPECT_FALSE(ParseVerdict(EncodeVerdict(disordered)).ok());
}

TEST(Handshake, ASealBreaksWhenAnyByteChanges) {
  const Challenge ours = RandomChallenge(), theirs = RandomChallenge();
  const std::vector<std::byte> body = EncodeHello(SomeHello());
  const std::vector<std::byte> good = Seal("secret", "client", ours, theirs, body);
  const auto holds = [&](std::vector<std::byte> message, std::string_view secret,
                         std::string_view speaker, const Challenge& challenge) {
    const StatusOr<SealedHeader> header = ParseSealedHeader(message);
    return header.ok() && ProofHolds(secret, speaker, *header, challenge,
                                     std::span(message).subspan(sizeof(SealedHeader)));
  };
  EXPECT_TRUE(holds(good, "secret", "client", theirs));
  EXPECT_FALSE(holds(good, "Secret", "client", theirs));
  EXPECT_FALSE(holds(good, "secret", "server", theirs)) << "a proof must not be reflected";
  EXPECT_FALSE(holds(good, "secret", "client", ours)) << "a proof must not be replayed";
  for (size_t i = 0; i < good.size(); ++i) {
    if (i >= 76 && i < sizeof(SealedHeader))
      continue;  // the body's length is not under the proof but the body is
    std::vector<std::byte> bad = good;
    bad[i] ^= std::byte{1};
    EXPECT_FALSE(holds(bad, "secret", "client", theirs)) << "byte " << i;
  }
}

TEST(Handshake, AHugeBodyIsRefusedBeforeItIsAllocated) {
  SealedHeader header;
  header.body_bytes = 0xffffffff;
  std::vector<std::byte> bytes(sizeof(header));
  std::memcpy(bytes.data(), &header, sizeof(header));
  EXPECT_FALSE(ParseSealedHeader(bytes).ok());
}

TEST(Handshake, AnotherProtocolVersionIsNamed) {
  const Status status = CheckMagic(kHandshakeMagic, kProtocolVersion + 1);
  EXPECT_NE(MessageOf(status).find("protocol 2 and this one 1"), std::string::npos) << status;
}

TEST(Handshake, ControlCharactersOfAStrangerDoNotReachTheTerminal) {
  Hello hello = SomeHello();
  hello.host = "evil\x1b[2J\nhost";
  const StatusOr<Hello> read = ParseHello(EncodeHello(hello));
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(read->host, "evil?[2J?host");
}

TEST(ControlFrames, AreTakenOneByOneFromAStream) {
  std::vector<std::byte> stream;
  for (const size_t size : {size_t{0}, size_t{5}, size_t{70'000}}) {
    const std::vector<std::byte> frame =
        EncodeFrame({ControlType::kShare, std::vector<std::byte>(size)});
    stream.insert(stream.end(), frame.begin(), frame.end());
  }
  std::vector<std::byte> arrived;
  std::vector<size_t> sizes;
  for (size_t i = 0; i < stream.size(); i += 777) {
    arrived.insert(arrived.end(), stream.begin() + static_cast<ptrdiff_t>(i),
                   stream.begin() + static_cast<ptrdiff_t>(std::min(i + 777, stream.size())));
    ControlFrame frame;
    while (*TakeFrame(&arrived, &frame) == 1) sizes.push_back(frame.body.size());
  }
  EXPECT_EQ(sizes, (std::vector<size_t>{0, 5, 70'000}));
  EXPECT_TRUE(arrived.empty());
}

TEST(ControlFrames, MalformedOnesAreRefused) {
  ControlFrame frame;
  std::vector<std::byte> huge = {std::byte{0xff}, std::byte{0xff}, std::byte{0xff}, std::byte{0x7f},
                                 std::byte{1}};
  EXPECT_FALSE(TakeFrame(&huge, &frame).ok());
  std::vector<std::byte> unknown = EncodeFrame({static_cast<ControlType>(9), {}});
  EXPECT_FALSE(TakeFrame(&unknown, &frame).ok());
}

TEST(ControlFrames, AHeartbeatHasTheBytesThatTheWirePageSays) {
  const Heartbeat sent = {.stamp = 0x0102030405060708,
                          .held_ns = 9,
                          .report = {1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13}};
  const std::vector<std::byte> body = EncodeHeartbeat(sent);
  ASSERT_EQ(body.size(), 108u);
  EXPECT_EQ(body[0], std::byte{8});
  EXPECT_EQ(body[8], std::byte{9});
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(body[16 + 8 * i], std::byte(i + 1));
  for (size_t i = 8; i < 11; ++i) EXPECT_EQ(body[16 + 8 * i], std::byte(i + 2));
  EXPECT_EQ(body[104], std::byte{13});
  const StatusOr<Heartbeat> read = ParseHeartbeat(body);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->stamp, sent.stamp);
  EXPECT_EQ(read->report, sent.report);
  for (const size_t size : {size_t{0}, size_t{1}, size_t{107}, size_t{109}}) {
    std::vector<std::byte> other = body;
    other.resize(size);
    EXPECT_FALSE(ParseHeartbeat(other).ok()) << size;
  }
}

TEST(Handshake, RandomBytesNeverCrashTheParsers) {
  std::mt19937 random(lockstep::testing::TestSeed());
  for (int i = 0; i < 20'000; ++i) {
    std::vector<std::byte> bytes = i % 2 ? EncodeHello(SomeHello()) : EncodeVerdict(SomeVerdict());
    for (uint32_t flips = random() % 4 + 1; flips > 0; --flips) {
      bytes[random() % bytes.size()] = static_cast<std::byte>(random());
    }
    (void)ParseHello(bytes);
    (void)ParseVerdict(bytes);
    (void)ParseSealedHeader(bytes);
  }
}

}  // namespace
}  // namespace lockstep
