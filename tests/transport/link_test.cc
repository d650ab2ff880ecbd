#include "transport/link.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "runtime/base/clock.h"
#include "transport/backends.h"

namespace lockstep {
namespace {

struct Pair {
  std::unique_ptr<Link> a, b;
};

Pair MakePair(const std::string& transport) {
  int ends[2];
  EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
  if (transport == "tcp") return {MakeTcpLink(UniqueFd(ends[0])), MakeTcpLink(UniqueFd(ends[1]))};
  const Deadline deadline = Deadline::After(5000);
  auto a = MakeShmLink(UniqueFd(ends[0]), true, deadline);
  auto b = MakeShmLink(UniqueFd(ends[1]), false, deadline);
  EXPECT_TRUE(a.ok() && b.ok()) << a.status() << b.status();
  return {std::move(*a), std::move(*b)};
}

// Polls until both counters are reached.
Status PollUntil(Link& link, uint64_t sends, uint64_t receives) {
  const Deadline deadline = Deadline::After(20'000);
  while (true) {
    LOCKSTEP_ASSIGN_OR_RETURN(const LinkProgress progress, link.Poll());
    if (progress.sends >= sends && progress.receives >= receives) return OkStatus();
    if (deadline.Passed()) return InternalError("no progress");
  }
}

std::vector<std::byte> Noise(size_t bytes, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> data(bytes);
  for (std::byte& value : data) value = static_cast<std::byte>(random());
  return data;
}

class EveryLink : public testing::TestWithParam<const char*> {
 protected:
  Pair pair_ = MakePair(GetParam());
};

TEST_P(EveryLink, CarriesMessagesOfEverySizeInOrderBothWays) {
  const std::vector<size_t> sizes = {0, 1, 16, 4095, 0, 20'480, 1 << 20, 3, (3 << 20) + 7, 0};
  const auto run = [&](Link& link, uint32_t own, uint32_t other) {
    std::vector<std::vector<std::byte>> out, in;
    for (size_t i = 0; i < sizes.size(); ++i) {
      out.push_back(Noise(sizes[i], own + static_cast<uint32_t>(i)));
      in.emplace_back(sizes[i]);
    }
    for (size_t i = 0; i < sizes.size(); ++i) {
      EXPECT_TRUE(link.PostSend(out[i]).ok());
      EXPECT_TRUE(link.PostReceive(in[i]).ok());
    }
    EXPECT_TRUE(PollUntil(link, sizes.size(), sizes.size()).ok());
    for (size_t i = 0; i < sizes.size(); ++i) {
      EXPECT_EQ(in[i], Noise(sizes[i], other + static_cast<uint32_t>(i))) << "message " << i;
    }
  };
  std::thread peer([&] { run(*pair_.b, 200, 100); });
  run(*pair_.a, 100, 200);
  peer.join();
}

TEST_P(EveryLink, NeverBlocksWhenThePeerReadsNothing) {
  const std::vector<std::byte> large = Noise(8 << 20, 1);
  ASSERT_TRUE(pair_.a->PostSend(large).ok());
  for (int i = 0; i < 1000; ++i) {
    const StatusOr<LinkProgress> progress = pair_.a->Poll();
    ASSERT_TRUE(progress.ok());
    EXPECT_EQ(progress->sends, 0u);
  }
  std::vector<std::byte> received(large.size());
  ASSERT_TRUE(pair_.b->PostReceive(received).ok());
  std::thread sender([&] { EXPECT_TRUE(PollUntil(*pair_.a, 1, 0).ok()); });
  EXPECT_TRUE(PollUntil(*pair_.b, 0, 1).ok());
  sender.join();
  EXPECT_EQ(received, large);
}

TEST_P(EveryLink, AClosedPeerIsAnErrorThatSaysSo) {
  std::byte buffer[4];
  ASSERT_TRUE(pair_.a->PostReceive(buffer).ok());
  pair_.b->Close();
  const Status status = PollUntil(*pair_.a, 0, 1);
  EXPECT_EQ(KindOf(status), ErrorKind::kPeerLost) << status;
  EXPECT_NE(MessageOf(status).find("closed the connection"), std::string::npos) << status;
}

TEST_P(EveryLink, WhatWasSentBeforeTheEndArrives) {
  const std::vector<std::byte> last = Noise(10'000, 4);
  ASSERT_TRUE(pair_.b->PostSend(last).ok());
  ASSERT_TRUE(PollUntil(*pair_.b, 1, 0).ok());
  pair_.b->Close();
  std::vector<std::byte> received(last.size());
  ASSERT_TRUE(pair_.a->PostReceive(received).ok());
  EXPECT_TRUE(PollUntil(*pair_.a, 0, 1).ok());
  EXPECT_EQ(received, last);
}

TEST_P(EveryLink, SendingToAClosedPeerIsAnErrorNotASignal) {
  pair_.b.reset();
  const std::vector<std::byte> data(4 << 20);
  ASSERT_TRUE(pair_.a->PostSend(data).ok());
  EXPECT_FALSE(PollUntil(*pair_.a, 1, 0).ok());
}

TEST_P(EveryLink, AnOwnCloseIsFinal) {
  pair_.a->Close();
  pair_.a->Close();
  EXPECT_FALSE(pair_.a->Poll().ok());
  EXPECT_FALSE(pair_.a->PostSend({}).ok());
  EXPECT_FALSE(pair_.a->PostReceive({}).ok());
  pair_.a->WaitReadable(1'000'000);
}

TEST_P(EveryLink, ASleepingReaderWakesForData) {
  std::vector<std::byte> received(1000);
  std::atomic<bool> sleeping{false};
  std::thread reader([&] {
    EXPECT_TRUE(pair_.a->PostReceive(received).ok());
    sleeping = true;
    uint64_t done = 0;
    // Two long sleeps at most: a spurious wake-up is allowed, twenty seconds are not.
    for (int i = 0; i < 3 && done == 0; ++i) {
      pair_.a->WaitReadable(20'000'000);
      const StatusOr<LinkProgress> progress = pair_.a->Poll();
      ASSERT_TRUE(progress.ok());
      done = progress->receives;
    }
    EXPECT_EQ(done, 1u);
  });
  while (!sleeping) std::this_thread::yield();
  usleep(50'000);
  const int64_t start = NowNs();
  const std::vector<std::byte> data = Noise(received.size(), 8);
  EXPECT_TRUE(pair_.b->PostSend(data).ok());
  EXPECT_TRUE(PollUntil(*pair_.b, 1, 0).ok());
  reader.join();
  EXPECT_LT(NowNs() - start, 5'000'000'000);
  EXPECT_EQ(received, data);
}

TEST_P(EveryLink, AnEndWakesASleepingReader) {
  std::byte buffer[4];
  ASSERT_TRUE(pair_.a->PostReceive(buffer).ok());
  std::thread closer([&] {
    usleep(50'000);
    pair_.b->Close();
  });
  const int64_t start = NowNs();
  pair_.a->WaitReadable(20'000'000);
  closer.join();
  EXPECT_LT(NowNs() - start, 10'000'000'000);
  EXPECT_FALSE(PollUntil(*pair_.a, 0, 1).ok());
}

TEST_P(EveryLink, StatesItsTraits) {
  EXPECT_STREQ(pair_.a->traits().name, GetParam());
  EXPECT_TRUE(pair_.a->traits().detects_peer_death);
  EXPECT_FALSE(pair_.a->traits().needs_registered_memory);
}

INSTANTIATE_TEST_SUITE_P(Links, EveryLink, testing::Values("tcp", "shm"),
                         [](const auto& values) { return std::string(values.param); });

TEST(ShmLink, LeavesNothingInTheFileSystem) {
  const auto count = [] {
    int files = 0;
    FILE* list = popen("ls -A /dev/shm | wc -l", "r");
    EXPECT_EQ(fscanf(list, "%d", &files), 1);
    pclose(list);
    return files;
  };
  const int before = count();
  const Pair pair = MakePair("shm");
  EXPECT_EQ(count(), before);
}

TEST(ShmLink, RefusesADescriptorOfAWrongSize) {
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends), 0);
  const UniqueFd other(ends[0]);
  const char byte = 'm';
  ASSERT_EQ(send(other.get(), &byte, 1, 0), 1);  // a byte without a descriptor
  EXPECT_FALSE(MakeShmLink(UniqueFd(ends[1]), false, Deadline::After(500)).ok());
}

}  // namespace
}  // namespace lockstep
