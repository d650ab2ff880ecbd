// The RDMA link over queue pairs in memory that lose and damage packets: what a device does only
// when a cable is bad. tests/transport/link_test.cc runs the contract of links over it as well.
#include "transport/rdma/rdma_link.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <atomic>
#include <random>
#include <thread>

#include "runtime/base/clock.h"
#include "tests/support/seed.h"
#include "tests/transport/fake_queue_pair.h"

namespace lockstep::rdma {
namespace {

constexpr size_t kWindowBytes = 256 << 10;

struct Ends {
  explicit Ends(const FakeOptions& options) {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
    FakePair::Two pair = FakePair::Make(options, {windows[0], windows[1]});
    for (size_t side = 0; side < 2; ++side) {
      links[side] = MakeLinkOver(std::move(pair[side]), UniqueFd(ends[side]), windows[side]);
    }
  }
  std::array<std::vector<std::byte>, 2> windows = {std::vector<std::byte>(kWindowBytes),
                                                   std::vector<std::byte>(kWindowBytes)};
  std::array<std::unique_ptr<Link>, 2> links;
};

void Fill(std::span<std::byte> data, uint32_t seed) {
  std::mt19937 random(seed);
  for (std::byte& value : data) value = static_cast<std::byte>(random());
}
bool Holds(std::span<const std::byte> data, uint32_t seed) {
  std::mt19937 random(seed);
  for (const std::byte value : data) {
    if (value != static_cast<std::byte>(random())) return false;
  }
  return true;
}

// What side `side` puts or sends as number `number`.
size_t BytesOf(uint32_t number, size_t most) {
  std::mt19937 random(number * 31 + 7);
  return random() % 4 == 0 ? random() % 3 : random() % most;
}
uint32_t SeedOf(size_t side, uint32_t number) { return number * 2 + static_cast<uint32_t>(side); }

// One side of `count` rounds of a put and a message each way, as ranks exchange: a half of the
// window is filled anew when the peer has sent the round after it. Goes on polling until both sides
// are done, so that what was lost last is repeated.
Status RunSide(Ends* ends, size_t side, uint32_t count, std::atomic<int>* done) {
  Link& link = *ends->links[side];
  const Deadline deadline = Deadline::After(60'000);
  std::vector<std::byte> out, in;
  LinkProgress progress;
  const auto until = [&](const auto& condition) -> Status {
    while (!condition()) {
      LOCKSTEP_ASSIGN_OR_RETURN(progress, link.Poll());
      if (deadline.Passed()) return InternalError("side %d stands still", side);
      std::this_thread::yield();  // the other side may need this core
    }
    return OkStatus();
  };
  for (uint32_t round = 0; round < count; ++round) {
    const size_t half = (round % 2) * (kWindowBytes / 2);
    const size_t bytes = BytesOf(round, kWindowBytes / 2);
    LOCKSTEP_RETURN_IF_ERROR(until([&] { return progress.puts == round; }));
    Fill(std::span(ends->windows[side]).subspan(half, bytes), SeedOf(side, round));
    LOCKSTEP_RETURN_IF_ERROR(link.Expect(half, bytes));
    LOCKSTEP_RETURN_IF_ERROR(link.Put(half, bytes, SeedOf(side, round)));
    const size_t message = BytesOf(round + 1000, 100'000);
    out.resize(message);
    in.assign(message, {});
    Fill(out, SeedOf(side, round + 1000));
    LOCKSTEP_RETURN_IF_ERROR(link.PostReceive(in));
    LOCKSTEP_RETURN_IF_ERROR(link.PostSend(out, round));
    LOCKSTEP_RETURN_IF_ERROR(until([&] {
      return progress.arrivals > round && progress.receives > round && progress.sends > round;
    }));
    EXPECT_TRUE(Holds(link.view().subspan(half, bytes), SeedOf(1 - side, round))) << round;
    EXPECT_TRUE(Holds(in, SeedOf(1 - side, round + 1000))) << round;
    EXPECT_EQ(link.put_tag(round), SeedOf(1 - side, round));
    EXPECT_EQ(link.message_tag(round), round);
  }
  ++*done;
  return until([&] { return *done == 2; });
}

void RunBothSides(const FakeOptions& options, uint32_t count) {
  Ends ends(options);
  std::atomic<int> done{0};
  Status other;
  std::thread peer([&] { other = RunSide(&ends, 1, count, &done); });
  EXPECT_TRUE(RunSide(&ends, 0, count, &done).ok());
  peer.join();
  EXPECT_TRUE(other.ok()) << other;
}

FakeOptions Options(Mode mode) {
  FakeOptions options;
  options.mode = mode;
  options.seed = static_cast<uint32_t>(testing::TestSeed());
  return options;
}

TEST(RdmaLink, NeverOverrunsThePeerOverRc) { RunBothSides(Options(Mode::kReliable), 300); }

TEST(RdmaLink, CutsLongWritesWhereTheDeviceMust) {
  FakeOptions options = Options(Mode::kReliable);
  options.largest_message = 10'000;
  RunBothSides(options, 100);
}

TEST(RdmaLink, DeliversOverUc) { RunBothSides(Options(Mode::kUnreliable), 300); }

TEST(RdmaLink, RepeatsWhatUcLoses) {
  FakeOptions options = Options(Mode::kUnreliable);
  options.lost = 0.02;
  RunBothSides(options, 100);
}

TEST(RdmaLink, RepeatsWhatUcDamages) {
  FakeOptions options = Options(Mode::kUnreliable);
  options.damaged = 0.02;
  options.lost = 0.01;
  RunBothSides(options, 100);
}

// Only the sender's clock can know of a packet that was the last one.
TEST(RdmaLink, RepeatsALostLastPacket) {
  FakeOptions options = Options(Mode::kUnreliable);
  options.lost = 0.3;
  RunBothSides(options, 10);
}

Status PollUntilError(Link& link) {
  const Deadline deadline = Deadline::After(20'000);
  while (!deadline.Passed()) LOCKSTEP_RETURN_IF_ERROR(link.Poll().status());
  return OkStatus();
}

TEST(RdmaLink, DamageThatADeviceMustNotLetThroughEndsAnRcLink) {
  FakeOptions options = Options(Mode::kReliable);
  options.damaged = 1;
  bool caught = false;
  for (options.seed = 1; options.seed < 40 && !caught; ++options.seed) {
    Ends ends(options);
    std::byte buffer[1], data[1] = {};
    ASSERT_TRUE(ends.links[0]->PostReceive(buffer).ok());
    ASSERT_TRUE(ends.links[1]->PostSend(data, 0).ok());
    for (int i = 0; i < 100 && !caught; ++i) {
      const StatusOr<LinkProgress> progress = ends.links[0]->Poll();
      caught = !progress.ok() && KindOf(progress.status()) == ErrorKind::kPeerLost;
    }
  }
  EXPECT_TRUE(caught);
}

TEST(RdmaLink, AClosedPeerIsToldApartFromASilentOne) {
  for (const Mode mode : {Mode::kReliable, Mode::kUnreliable}) {
    Ends ends(Options(mode));
    std::byte data[100] = {};
    ASSERT_TRUE(ends.links[0]->PostSend(data, 0).ok());
    const Deadline a_while = Deadline::After(100);
    while (!a_while.Passed()) ASSERT_TRUE(ends.links[0]->Poll().ok());
    ends.links[1].reset();
    EXPECT_EQ(MessageOf(PollUntilError(*ends.links[0])), "closed the connection");
  }
}

}  // namespace
}  // namespace lockstep::rdma
