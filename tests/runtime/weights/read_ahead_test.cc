#include "runtime/weights/read_ahead.h"

#include <algorithm>
#include <atomic>
#include <random>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/seed.h"
#include "tests/support/temporary.h"

namespace lockstep {
namespace {

using ::testing::HasSubstr;

// Small enough for every case to come up.
constexpr ReadAheadLimits kLimits = {.threads = 3, .block_bytes = 16 << 10, .blocks = 4};
constexpr uint64_t kFileBytes = 300'001;

class ReadAheadOf : public ::testing::Test {
 protected:
  ReadAheadOf() {
    for (std::string* contents : {&contents_[0], &contents_[1]}) {
      contents->resize(kFileBytes);
      for (char& c : *contents) c = static_cast<char>(random_());
    }
    for (int i = 0; i < 2; ++i) {
      directory_.Write(std::to_string(i), contents_[i]);
      files_[i] = RandomAccessFile::Open(directory_.File(std::to_string(i))).value();
    }
  }

  // Pieces of both files of any size, none of them twice.
  std::vector<PlannedRead> RandomPlan() {
    std::vector<PlannedRead> plan;
    for (uint64_t at = random_() % 5000; at < kFileBytes;) {
      const uint64_t size = random_() % 3 == 0 ? random_() % 50'000 : random_() % 500;
      const uint64_t bytes = std::min(kFileBytes - at, size);
      if (bytes > 0) plan.push_back({files_[random_() % 2].get(), at, bytes});
      at += bytes + random_() % 3 * (random_() % 9000);
    }
    return plan;
  }

  void ExpectRead(ReadAhead& ahead, const PlannedRead& read) {
    std::string got(read.bytes, '\0');
    const Status status =
        ahead.Read(*read.file, read.offset, std::as_writable_bytes(std::span(got)));
    ASSERT_TRUE(status.ok()) << status;
    const std::string& contents = contents_[read.file == files_[0].get() ? 0 : 1];
    ASSERT_TRUE(got == contents.substr(read.offset, read.bytes)) << read.offset;
  }

  std::mt19937_64 random_{testing::TestSeed()};
  testing::TemporaryDirectory directory_;
  std::string contents_[2];
  std::unique_ptr<RandomAccessFile> files_[2];
};

TEST_F(ReadAheadOf, WhatIsPlannedIsTheFilesInOrderOrNot) {
  for (int trial = 0; trial < 60; ++trial) {
    std::vector<PlannedRead> plan = RandomPlan();
    const auto ahead = ReadAhead::Start(plan, kLimits).value();
    if (trial % 3 == 1) std::shuffle(plan.begin(), plan.end(), random_);
    for (size_t i = 0; trial % 3 == 2 && i + 4 < plan.size(); i += 4)
      std::shuffle(plan.begin() + static_cast<int64_t>(i),
                   plan.begin() + static_cast<int64_t>(i) + 4, random_);
    for (const PlannedRead& read : plan) {
      const uint64_t first = random_() % (read.bytes + 1);  // in two pieces
      ExpectRead(*ahead, {read.file, read.offset, first});
      ExpectRead(*ahead, {read.file, read.offset + first, read.bytes - first});
    }
  }
}

TEST_F(ReadAheadOf, WhatIsNotPlannedIsReadAllTheSame) {
  const auto ahead = ReadAhead::Start(RandomPlan(), kLimits).value();
  for (int trial = 0; trial < 200; ++trial) {
    const uint64_t offset = random_() % kFileBytes;
    ExpectRead(*ahead, {files_[random_() % 2].get(), offset, random_() % (kFileBytes - offset)});
  }
  const auto nothing = ReadAhead::Start({}, kLimits).value();
  ExpectRead(*nothing, {files_[0].get(), 0, kFileBytes});
}

TEST_F(ReadAheadOf, ManyThreadsTakeWhatIsPlanned) {
  const std::vector<PlannedRead> plan = RandomPlan();
  const auto ahead = ReadAhead::Start(plan, kLimits).value();
  std::atomic<size_t> next{0};
  std::vector<std::jthread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&] {
      for (size_t i = next++; i < plan.size(); i = next++) ExpectRead(*ahead, plan[i]);
    });
  }
}

// Counts what is asked for behind the middle of the file and past its direct reads.
class WatchedFile final : public RandomAccessFile {
 public:
  explicit WatchedFile(const RandomAccessFile& file)
      : RandomAccessFile(file.path(), file.size_bytes()), file_(file) {}
  Status Read(uint64_t offset, std::span<std::byte> out) const override {
    if (offset >= size_bytes() / 2) late_bytes_ += out.size();
    return file_.Read(offset, out);
  }
  Status ReadDirect(uint64_t offset, std::span<std::byte> out) const override {
    return file_.ReadDirect(offset, out);
  }
  uint64_t late_bytes() const { return late_bytes_; }

 private:
  const RandomAccessFile& file_;
  mutable std::atomic<uint64_t> late_bytes_{0};
};

TEST_F(ReadAheadOf, AnotherOrderThanPlannedDoesNotEndIt) {
  const WatchedFile watched(*files_[0]);
  constexpr uint64_t kHalf = kFileBytes / 2 / kLimits.block_bytes * kLimits.block_bytes;
  std::vector<PlannedRead> plan, first, second;
  for (uint64_t at = 0; at < kHalf; at += kLimits.block_bytes) {
    first.push_back({&watched, at, kLimits.block_bytes});
    second.push_back({&watched, kHalf + at, kLimits.block_bytes});
    plan.insert(plan.end(), {first.back(), second.back()});
  }
  const auto ahead = ReadAhead::Start(plan, kLimits).value();
  for (const std::vector<PlannedRead>* half : {&first, &second}) {
    for (const PlannedRead& read : *half) {
      std::string got(read.bytes, '\0');
      ASSERT_TRUE(ahead->Read(watched, read.offset, std::as_writable_bytes(std::span(got))).ok());
      ASSERT_TRUE(got == contents_[0].substr(read.offset, read.bytes)) << read.offset;
    }
  }
  EXPECT_EQ(watched.late_bytes(), 0);
}

TEST_F(ReadAheadOf, HoldsItsBlocksAndNoMore) {
  const uint64_t before = Buffer::LiveBytes();
  const std::vector<PlannedRead> all = {{files_[0].get(), 0, kFileBytes}};
  {
    const auto ahead = ReadAhead::Start(all, kLimits).value();
    EXPECT_EQ(ReadAhead::BytesFor(all, kLimits), 4 * kLimits.block_bytes);
    EXPECT_EQ(Buffer::LiveBytes() - before, ReadAhead::BytesFor(all, kLimits));
    ExpectRead(*ahead, all[0]);
    EXPECT_EQ(Buffer::LiveBytes() - before, ReadAhead::BytesFor(all, kLimits));
  }
  EXPECT_EQ(Buffer::LiveBytes(), before);
  const auto small = ReadAhead::Start({{files_[0].get(), 5, 10}}, kLimits).value();
  EXPECT_EQ(Buffer::LiveBytes() - before, kLimits.block_bytes);
}

TEST_F(ReadAheadOf, AFileThatWasCutIsNamed) {
  const std::vector<PlannedRead> plan = {{files_[0].get(), 0, 1000},
                                         {files_[0].get(), kFileBytes - 1000, 1000}};
  std::filesystem::resize_file(directory_.File("0"), 5000);
  const auto ahead = ReadAhead::Start(plan, kLimits).value();
  ExpectRead(*ahead, plan[0]);
  std::vector<std::byte> out(1000);
  for (int again = 0; again < 2; ++again) {
    const Status status = ahead->Read(*plan[1].file, plan[1].offset, out);
    ASSERT_FALSE(status.ok());
    EXPECT_THAT(MessageOf(status), HasSubstr("the file was cut"));
  }
}

}  // namespace
}  // namespace lockstep
