#include "transport/link.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "runtime/base/clock.h"
#include "tests/support/rdma.h"
#include "tests/support/seed.h"
#include "tests/transport/fake_queue_pair.h"
#include "transport/backends.h"
#include "transport/delay.h"
#include "transport/fault.h"
#include "transport/rdma/rdma_link.h"
#include "transport/sim.h"

namespace lockstep {
namespace {

constexpr size_t kWindowBytes = 256 << 10;

struct Pair {
  Window window_a, window_b;
  std::unique_ptr<Link> a, b;
};

Pair MakeSimPair(bool in_place) {
  SimOptions options;
  options.window_bytes = kWindowBytes;
  options.in_place = in_place;
  StatusOr<SimNetwork> network = MakeSimNetwork(options);
  EXPECT_TRUE(network.ok()) << network.status();
  Mesh& a = network->meshes[0];
  Mesh& b = network->meshes[1];
  return {std::move(a.window), std::move(b.window), std::move(a.links[1]), std::move(b.links[0])};
}

bool Has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

// Two ends of a connection; for rdma between addresses of the RDMA network.
std::array<UniqueFd, 2> Connect(const std::string& transport) {
  if (transport.rfind("rdma", 0) == 0) {
    const std::string host = *testing::RdmaAddress();
    const StatusOr<UniqueFd> listener = ListenTcp({host, 0});
    EXPECT_TRUE(listener.ok()) << listener.status();
    StatusOr<UniqueFd> connected =
        ConnectTcp({host, LocalEndpoint(listener->get()).port}, Deadline::After(5000));
    EXPECT_TRUE(connected.ok()) << connected.status();
    EXPECT_TRUE(WaitForSocket(listener->get(), true, false, 5'000'000));
    return {std::move(*connected), AcceptPending(listener->get())};
  }
  int ends[2];
  EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

// "tcp", "shm", "sim", "sim_in_place", "rdma_rc" and "rdma_uc" (over a device), "fake_rc" and
// "fake_uc" (the same link over queues in memory); "late_...": the same through a link that is late
// and out of turn; "delayed_...": through one that adds latency.
Pair MakePair(const std::string& transport) {
  if (transport.rfind("late_", 0) == 0) {
    Pair pair = MakePair(transport.substr(5));
    const auto late = [](std::unique_ptr<Link> link, uint64_t seed) {
      FaultOptions faults;
      faults.seed = lockstep::testing::TestSeed() * 2 + seed;
      faults.most_polls_late = 20;
      return MakeFaultyLink(std::move(link), faults);
    };
    pair.a = late(std::move(pair.a), 0);
    pair.b = late(std::move(pair.b), 1);
    return pair;
  }
  if (transport.rfind("delayed_", 0) == 0) {
    Pair pair = MakePair(transport.substr(8));
    const auto latency = std::make_shared<AddedLatency>();
    latency->ns = 200'000;
    for (std::unique_ptr<Link>* link : {&pair.a, &pair.b})
      *link = MakeDelayedLink(std::move(*link), latency);
    return pair;
  }
  if (transport.rfind("sim", 0) == 0) return MakeSimPair(transport == "sim_in_place");
  std::array<UniqueFd, 2> ends = Connect(transport);
  Pair pair;
  const bool shared = transport == "shm";
  for (Window* window : {&pair.window_a, &pair.window_b}) {
    *window = *(shared ? Window::Share(kWindowBytes) : Window::Allocate(kWindowBytes));
  }
  const std::string mode = transport.substr(transport.find('_') + 1);
  if (transport.rfind("fake", 0) == 0) {
    rdma::FakeOptions options;
    options.mode = mode == "rc" ? rdma::Mode::kReliable : rdma::Mode::kUnreliable;
    auto queues = rdma::FakePair::Make(options, {pair.window_a.bytes(), pair.window_b.bytes()});
    pair.a = rdma::MakeLinkOver(std::move(queues[0]), std::move(ends[0]), pair.window_a.bytes());
    pair.b = rdma::MakeLinkOver(std::move(queues[1]), std::move(ends[1]), pair.window_b.bytes());
    return pair;
  }
  const auto make = [&](UniqueFd end, bool first) -> StatusOr<std::unique_ptr<Link>> {
    const Window& window = first ? pair.window_a : pair.window_b;
    if (transport == "tcp") return MakeTcpLink(std::move(end), window.bytes());
    const Deadline deadline = Deadline::After(10'000);
    if (shared) return MakeShmLink(std::move(end), window, first, deadline);
    LOCKSTEP_ASSIGN_OR_RETURN(const auto devices, OpenRdmaDevices(mode));
    return devices->MakeLink(std::move(end), window.bytes(), deadline);
  };
  StatusOr<std::unique_ptr<Link>> other;
  std::thread peer([&] { other = make(std::move(ends[1]), false); });
  StatusOr<std::unique_ptr<Link>> own = make(std::move(ends[0]), true);
  peer.join();
  EXPECT_TRUE(own.ok() && other.ok()) << own.status() << other.status();
  pair.a = std::move(*own);
  pair.b = std::move(*other);
  return pair;
}

// Polls until all counters are reached.
Status PollUntil(Link& link, const LinkProgress& wanted) {
  const Deadline deadline = Deadline::After(20'000);
  while (true) {
    LOCKSTEP_ASSIGN_OR_RETURN(const LinkProgress progress, link.Poll());
    if (progress.sends >= wanted.sends && progress.receives >= wanted.receives &&
        progress.puts >= wanted.puts && progress.arrivals >= wanted.arrivals) {
      return OkStatus();
    }
    if (deadline.Passed()) return InternalError("no progress");
  }
}

std::vector<std::byte> Noise(size_t bytes, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> data(bytes);
  for (std::byte& value : data) value = static_cast<std::byte>(random());
  return data;
}

class EveryLink : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string reason = testing::WhyNot(GetParam());
    if (!reason.empty()) GTEST_SKIP() << reason;
    pair_ = MakePair(GetParam());
  }
  Pair pair_;
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
      EXPECT_TRUE(link.PostSend(out[i], static_cast<uint32_t>(own + i)).ok());
      EXPECT_TRUE(link.PostReceive(in[i]).ok());
    }
    EXPECT_TRUE(PollUntil(link, {.sends = sizes.size(), .receives = sizes.size()}).ok());
    for (size_t i = 0; i < sizes.size(); ++i) {
      EXPECT_EQ(in[i], Noise(sizes[i], other + static_cast<uint32_t>(i))) << "message " << i;
      EXPECT_EQ(link.message_tag(i), other + i);
    }
  };
  std::thread peer([&] { run(*pair_.b, 200, 100); });
  run(*pair_.a, 100, 200);
  peer.join();
}

// Puts `data` into the own window at `offset` and towards the peer.
Status PutData(Link& link, Window& window, size_t offset, const std::vector<std::byte>& data,
               uint32_t tag) {
  std::copy(data.begin(), data.end(), window.bytes().begin() + static_cast<ptrdiff_t>(offset));
  return link.Put(offset, data.size(), tag);
}

bool SeesData(Link& link, size_t offset, const std::vector<std::byte>& data) {
  const auto part = link.view().subspan(offset, data.size());
  return std::equal(part.begin(), part.end(), data.begin(), data.end());
}

TEST_P(EveryLink, PutsAppearAtTheirPlaceInOrderWithTheirTags) {
  struct Range {
    size_t offset, bytes;
  };
  const std::vector<Range> ranges = {{0, 20'480},
                                     {64, 0},
                                     {100'001, 1},
                                     {kWindowBytes, 0},
                                     {50'000, 777},
                                     {20'480, 64},
                                     {131'072, kWindowBytes - 131'072}};
  const auto run = [&](Link& link, Window& window, uint32_t own, uint32_t other) {
    for (const Range& range : ranges) EXPECT_TRUE(link.Expect(range.offset, range.bytes).ok());
    for (size_t i = 0; i < ranges.size(); ++i) {
      const uint32_t seed = own + static_cast<uint32_t>(i);
      EXPECT_TRUE(PutData(link, window, ranges[i].offset, Noise(ranges[i].bytes, seed), seed).ok());
    }
    EXPECT_TRUE(PollUntil(link, {.puts = ranges.size(), .arrivals = ranges.size()}).ok());
    for (size_t i = 0; i < ranges.size(); ++i) {
      const uint32_t seed = other + static_cast<uint32_t>(i);
      EXPECT_EQ(link.put_tag(i), seed);
      EXPECT_TRUE(SeesData(link, ranges[i].offset, Noise(ranges[i].bytes, seed))) << "put " << i;
    }
  };
  std::thread peer([&] { run(*pair_.b, pair_.window_b, 200, 100); });
  run(*pair_.a, pair_.window_a, 100, 200);
  peer.join();
}

TEST_P(EveryLink, APutMayComeBeforeItIsExpected) {
  const std::vector<std::byte> data = Noise(5000, 3);
  ASSERT_TRUE(PutData(*pair_.a, pair_.window_a, 128, data, 7).ok());
  ASSERT_TRUE(PollUntil(*pair_.a, {.puts = 1}).ok());
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(pair_.b->Poll()->arrivals, 0u);
  ASSERT_TRUE(pair_.b->Expect(128, data.size()).ok());
  ASSERT_TRUE(PollUntil(*pair_.b, {.arrivals = 1}).ok());
  EXPECT_EQ(pair_.b->put_tag(0), 7u);
  EXPECT_TRUE(SeesData(*pair_.b, 128, data));
}

TEST_P(EveryLink, ACompletedPutIsOutOfTheWindowIfTheTraitsSaySo) {
  const std::vector<std::byte> data = Noise(1000, 3);
  ASSERT_TRUE(PutData(*pair_.a, pair_.window_a, 0, data, 7).ok());
  ASSERT_TRUE(PollUntil(*pair_.a, {.puts = 1}).ok());
  pair_.window_a.bytes()[0] ^= std::byte{1};
  ASSERT_TRUE(pair_.b->Expect(0, data.size()).ok());
  ASSERT_TRUE(PollUntil(*pair_.b, {.arrivals = 1}).ok());
  EXPECT_EQ(SeesData(*pair_.b, 0, data), pair_.a->traits().put_copies);
}

TEST_P(EveryLink, PutsAndMessagesShareALink) {
  const std::vector<std::byte> data = Noise(3000, 3), text = Noise(2000, 4);
  std::vector<std::byte> received(text.size());
  ASSERT_TRUE(PutData(*pair_.a, pair_.window_a, 0, data, 1).ok());
  ASSERT_TRUE(pair_.a->PostSend(text, 2).ok());
  ASSERT_TRUE(pair_.a->Put(0, 0, 3).ok());
  ASSERT_TRUE(pair_.b->Expect(0, data.size()).ok());
  ASSERT_TRUE(pair_.b->PostReceive(received).ok());
  ASSERT_TRUE(pair_.b->Expect(0, 0).ok());
  ASSERT_TRUE(PollUntil(*pair_.a, {.sends = 1, .puts = 2}).ok());
  ASSERT_TRUE(PollUntil(*pair_.b, {.receives = 1, .arrivals = 2}).ok());
  EXPECT_TRUE(SeesData(*pair_.b, 0, data));
  EXPECT_EQ(received, text);
  EXPECT_EQ(pair_.b->put_tag(1), 3u);
}

TEST_P(EveryLink, APutOfAnotherRangeIsAnErrorAndWritesNothing) {
  ASSERT_TRUE(PutData(*pair_.a, pair_.window_a, 100, Noise(2000, 1), 1).ok());
  ASSERT_TRUE(PollUntil(*pair_.a, {.puts = 1}).ok());
  ASSERT_TRUE(pair_.b->Expect(100, 2001).ok());
  const Status status = PollUntil(*pair_.b, {.arrivals = 1});
  EXPECT_EQ(MessageOf(status),
            "sent a put of 2000 bytes at 100 where a put of 2001 bytes at 100 is expected: the "
            "ranks are out of step");
  EXPECT_EQ(KindOf(status), ErrorKind::kPeerLost);
}

TEST_P(EveryLink, AMessageOfAnotherLengthIsAnError) {
  const std::vector<std::byte> data = Noise(10, 1);
  std::vector<std::byte> buffer(11);
  ASSERT_TRUE(pair_.a->PostSend(data, 1).ok());
  ASSERT_TRUE(pair_.b->PostReceive(buffer).ok());
  ASSERT_TRUE(PollUntil(*pair_.a, {.sends = 1}).ok());
  const Status status = PollUntil(*pair_.b, {.receives = 1});
  EXPECT_NE(MessageOf(status).find("a message of 10 bytes where a message of 11"),
            std::string::npos)
      << status;
}

TEST_P(EveryLink, NeverBlocksWhenThePeerReadsNothing) {
  const std::vector<std::byte> large = Noise(8 << 20, 1);
  ASSERT_TRUE(pair_.a->PostSend(large, 0).ok());
  for (int i = 0; i < 1000; ++i) {
    const StatusOr<LinkProgress> progress = pair_.a->Poll();
    ASSERT_TRUE(progress.ok());
    EXPECT_EQ(progress->sends, 0u);
  }
  std::vector<std::byte> received(large.size());
  ASSERT_TRUE(pair_.b->PostReceive(received).ok());
  // Over UC what was sent may have to be repeated, which takes the sender's polls.
  std::atomic<bool> arrived = false;
  std::thread sender([&] {
    EXPECT_TRUE(PollUntil(*pair_.a, {.sends = 1}).ok());
    while (!arrived && pair_.a->Poll().ok()) std::this_thread::yield();
  });
  EXPECT_TRUE(PollUntil(*pair_.b, {.receives = 1}).ok());
  arrived = true;
  sender.join();
  EXPECT_EQ(received, large);
}

TEST_P(EveryLink, AClosedPeerIsAnErrorThatSaysSo) {
  std::byte buffer[4];
  ASSERT_TRUE(pair_.a->PostReceive(buffer).ok());
  pair_.b->Close();
  const Status status = PollUntil(*pair_.a, {.receives = 1});
  EXPECT_EQ(KindOf(status), ErrorKind::kPeerLost) << status;
  EXPECT_NE(MessageOf(status).find("closed the connection"), std::string::npos) << status;
}

TEST_P(EveryLink, WhatWasSentBeforeTheEndArrives) {
  const std::vector<std::byte> last = Noise(10'000, 4);
  ASSERT_TRUE(pair_.b->PostSend(last, 0).ok());
  ASSERT_TRUE(PollUntil(*pair_.b, {.sends = 1}).ok());
  pair_.b->Close();
  std::vector<std::byte> received(last.size());
  ASSERT_TRUE(pair_.a->PostReceive(received).ok());
  EXPECT_TRUE(PollUntil(*pair_.a, {.receives = 1}).ok());
  EXPECT_EQ(received, last);
}

TEST_P(EveryLink, SendingToAClosedPeerIsAnErrorNotASignal) {
  pair_.b.reset();
  const std::vector<std::byte> data(4 << 20);
  ASSERT_TRUE(pair_.a->PostSend(data, 0).ok());
  EXPECT_FALSE(PollUntil(*pair_.a, {.sends = 1}).ok());
}

TEST_P(EveryLink, AnOwnCloseIsFinal) {
  pair_.a->Close();
  pair_.a->Close();
  EXPECT_FALSE(pair_.a->Poll().ok());
  EXPECT_FALSE(pair_.a->PostSend({}, 0).ok());
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
    // Spurious wake-ups are allowed, to sleep for twenty seconds is not.
    for (const Deadline deadline = Deadline::After(10'000); done == 0 && !deadline.Passed();) {
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
  EXPECT_TRUE(pair_.b->PostSend(data, 0).ok());
  EXPECT_TRUE(PollUntil(*pair_.b, {.sends = 1}).ok());
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
  EXPECT_FALSE(PollUntil(*pair_.a, {.receives = 1}).ok());
}

TEST_P(EveryLink, StatesItsTraits) {
  const std::string kind = GetParam();
  const bool rdma = Has(kind, "_rc") || Has(kind, "_uc");
  EXPECT_TRUE(Has(rdma ? "rdma" : kind, pair_.a->traits().name)) << pair_.a->traits().name;
  EXPECT_TRUE(pair_.a->traits().detects_peer_death);
  EXPECT_EQ(pair_.a->traits().put_copies, !Has(kind, "shm") && !Has(kind, "in_place"));
}

INSTANTIATE_TEST_SUITE_P(Links, EveryLink,
                         ::testing::Values("tcp", "shm", "sim", "sim_in_place", "late_tcp",
                                           "late_shm", "late_sim", "delayed_tcp", "delayed_shm",
                                           "fake_rc", "fake_uc", "rdma_rc", "rdma_uc"),
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

TEST(ShmLink, RefusesWhatIsNoSharedMemoryOfItsSize) {
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends), 0);
  const UniqueFd other(ends[0]);
  const char byte = 'm';
  ASSERT_EQ(send(other.get(), &byte, 1, 0), 1);  // a byte without a descriptor
  const Window window;
  EXPECT_FALSE(MakeShmLink(UniqueFd(ends[1]), window, false, Deadline::After(500)).ok());
  StatusOr<Window> small = Window::Share(4096);
  ASSERT_TRUE(small.ok()) << small.status();
  EXPECT_FALSE(Window::Map(UniqueFd(dup(small->descriptor())), 8192).ok());
}

TEST(ShmLink, AWindowIsReadOnlyForOthers) {
  StatusOr<Window> own = Window::Share(4096);
  ASSERT_TRUE(own.ok()) << own.status();
  own->bytes()[17] = std::byte{5};
  StatusOr<Window> seen = Window::Map(UniqueFd(dup(own->descriptor())), 4096);
  ASSERT_TRUE(seen.ok()) << seen.status();
  EXPECT_EQ(seen->bytes()[17], std::byte{5});
  EXPECT_DEATH(seen->bytes()[17] = std::byte{6}, "");
}

}  // namespace
}  // namespace lockstep
