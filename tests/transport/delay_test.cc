// Added latency by a virtual clock; that delayed links are links in all else is link_test's.
#include "transport/delay.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace lockstep {
namespace {

// Notes what reaches the link below.
class NotingLink final : public Link {
 public:
  explicit NotingLink(std::vector<std::string>* noted) : noted_(noted) {}
  const LinkTraits& traits() const override { return traits_; }
  std::span<const std::byte> view() const override { return {}; }
  Status Put(size_t offset, size_t bytes, uint32_t tag) override {
    noted_->push_back(absl::StrFormat("put %d+%d #%d", offset, bytes, tag));
    ++progress_.puts;
    return OkStatus();
  }
  Status Expect(size_t, size_t) override { return OkStatus(); }
  uint32_t put_tag(uint64_t) const override { return 0; }
  Status PostSend(std::span<const std::byte> data, uint32_t tag) override {
    noted_->push_back(absl::StrFormat("send %d #%d", data.size(), tag));
    ++progress_.sends;
    return OkStatus();
  }
  Status PostReceive(std::span<std::byte>) override { return OkStatus(); }
  uint32_t message_tag(uint64_t) const override { return 0; }
  StatusOr<LinkProgress> Poll() override { return progress_; }
  void WaitReadable(int64_t timeout_us) override { slept_us = timeout_us; }
  void Close() override {}

  int64_t slept_us = -1;

 private:
  std::vector<std::string>* noted_;
  LinkTraits traits_{
      .name = "noting", .detects_peer_death = true, .put_copies = true, .puts_need_polls = false};
  LinkProgress progress_;
};

using Noted = std::vector<std::string>;

class DelayedLink : public ::testing::Test {
 protected:
  DelayedLink() {
    auto inner = std::make_unique<NotingLink>(&noted_);
    inner_ = inner.get();
    link_ = MakeDelayedLink(std::move(inner), latency_, clock_);
    latency_->ns = 1000;
  }
  // What has left after so many more nanoseconds.
  const Noted& After(int64_t ns) {
    clock_.Advance(ns);
    EXPECT_TRUE(link_->Poll().ok());
    return noted_;
  }

  VirtualClock clock_;
  const std::shared_ptr<AddedLatency> latency_ = std::make_shared<AddedLatency>();
  Noted noted_;
  NotingLink* inner_ = nullptr;
  std::unique_ptr<Link> link_;
};

TEST_F(DelayedLink, HoldsEverythingBackForAsLongAndInOrder) {
  const std::vector<std::byte> data(7);
  ASSERT_TRUE(link_->Put(64, 8, 3).ok());
  EXPECT_EQ(After(400), Noted{});
  ASSERT_TRUE(link_->PostSend(data, 4).ok());
  ASSERT_TRUE(link_->Put(0, 1, 5).ok());
  EXPECT_EQ(After(599), Noted{});
  EXPECT_EQ(link_->Poll()->puts, 0u);  // nobody may touch its bytes yet
  EXPECT_EQ(After(1), Noted({"put 64+8 #3"}));
  EXPECT_EQ(link_->Poll()->puts, 1u);
  EXPECT_EQ(After(399), Noted({"put 64+8 #3"}));
  // Both at once: their latencies ran beside each other.
  EXPECT_EQ(After(1), Noted({"put 64+8 #3", "send 7 #4", "put 0+1 #5"}));
}

TEST_F(DelayedLink, ChangesNothingWithoutLatencyAndKeepsTheOrderWhereItEnds) {
  EXPECT_TRUE(link_->traits().puts_need_polls);
  ASSERT_TRUE(link_->Put(0, 1, 1).ok());
  latency_->ns = 0;
  ASSERT_TRUE(link_->Put(1, 1, 2).ok());  // not before the other one
  EXPECT_EQ(noted_, Noted{});
  EXPECT_TRUE(link_->traits().puts_need_polls);
  EXPECT_EQ(After(1000).size(), 2u);
  EXPECT_FALSE(link_->traits().puts_need_polls);
  ASSERT_TRUE(link_->Put(2, 1, 3).ok());
  EXPECT_EQ(noted_, Noted({"put 0+1 #1", "put 1+1 #2", "put 2+1 #3"}));
}

TEST_F(DelayedLink, SleepsNoLongerThanUntilSomethingLeaves) {
  latency_->ns = 5'000'000;
  link_->WaitReadable(20'000);
  EXPECT_EQ(inner_->slept_us, 20'000);
  ASSERT_TRUE(link_->Put(0, 1, 1).ok());
  link_->WaitReadable(20'000);
  EXPECT_EQ(inner_->slept_us, 5'000);
  inner_->slept_us = -1;
  clock_.Advance(5'000'000);
  link_->WaitReadable(20'000);  // due: not at all
  EXPECT_EQ(inner_->slept_us, -1);
}

TEST_F(DelayedLink, ForgetsWhatItHoldsWhenItCloses) {
  ASSERT_TRUE(link_->Put(0, 1, 1).ok());
  link_->Close();
  EXPECT_EQ(After(2000), Noted{});
  EXPECT_FALSE(link_->Put(0, 1, 2).ok());
}

}  // namespace
}  // namespace lockstep
