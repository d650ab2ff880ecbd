// Sizes of matrices are checked before memory is asked for, and what was counted is what is taken.
#include "runtime/tensor/matrix.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/base/os.h"
#include "runtime/tensor/page_toucher.h"

namespace lockstep {
namespace {

using ::testing::HasSubstr;

HostMatrix Shape(const WeightFormat& format, int64_t count, int64_t outputs, int64_t inputs) {
  HostMatrix shape;
  shape.format = format;
  shape.count = count;
  shape.outputs = outputs;
  shape.inputs = inputs;
  return shape;
}

TEST(HostMatrix, TakesTheBytesThatWereCounted) {
  const uint64_t before = Buffer::LiveBytes();
  for (const WeightFormat& format :
       {WeightFormat(DType::kF32), WeightFormat(DType::kBF16), WeightFormat::Of(Encoding::kQ4_0),
        WeightFormat::Of(Encoding::kQ6_K)}) {
    const HostMatrix shape = Shape(format, 3, 7, 512);
    const uint64_t counted = HostMatrix::BytesOf(shape, "test").value();
    EXPECT_GE(counted, 3 * 7 * shape.row_bytes());
    const HostMatrix matrix = HostMatrix::Allocate(format, 3, 7, 512, "test").value();
    EXPECT_EQ(matrix.data.bytes(), counted);
    EXPECT_EQ(Buffer::LiveBytes() - before, counted);
  }
  EXPECT_EQ(Buffer::LiveBytes(), before);
}

TEST(HostMatrix, SizesThatCannotBeAreErrorsThatSayWhat) {
  for (const HostMatrix& shape :
       {Shape(DType::kF32, 1, 1, int64_t{1} << 48), Shape(DType::kF32, 1, 1, -1),
        Shape(DType::kF32, int64_t{1} << 40, int64_t{1} << 30, 1),
        Shape(DType::kF32, 1, int64_t{1} << 40, int64_t{1} << 40), Shape(DType::kF32, -1, 1, 1)}) {
    const auto bytes = HostMatrix::BytesOf(shape, "the head");
    ASSERT_FALSE(bytes.ok()) << shape.inputs;
    EXPECT_THAT(MessageOf(bytes.status()), HasSubstr("the head"));
  }
}

size_t ResidentPages(const Buffer& buffer) {
  const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> pages((buffer.bytes() + page - 1) / page);
  EXPECT_EQ(mincore(const_cast<std::byte*>(buffer.data()), buffer.bytes(), pages.data()), 0);
  return static_cast<size_t>(
      std::count_if(pages.begin(), pages.end(), [](unsigned char in) { return in & 1; }));
}

TEST(HostMatrix, FirstTouchesReachEveryPage) {
  HostMatrix matrix = HostMatrix::Allocate(DType::kF32, 3, 50, 5000, "test").value();
  EXPECT_EQ(ResidentPages(matrix.data), 0u);
  ThreadPool pool(3);
  matrix.TouchFirst(pool);
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  EXPECT_GE(ResidentPages(matrix.data), matrix.data.bytes() / page);
}

TEST(PageToucher, BringsPagesAndLeavesWhatTheyHold) {
  Buffer probe = Buffer::Allocate(4096, "test").value();
  if (!os::PopulatePages(probe.data(), 4096)) GTEST_SKIP() << "this system populates no pages";
  Buffer buffer = Buffer::Allocate(uint64_t{40} << 20, "test").value();
  EXPECT_EQ(ResidentPages(buffer), 0u);
  buffer.data()[5'000'000] = std::byte{7};
  PageToucher toucher;
  toucher.Begin({buffer.data(), buffer.bytes()});
  const auto all = buffer.bytes() / static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const Deadline deadline = Deadline::After(20'000);
  while (ResidentPages(buffer) < all && !deadline.Passed()) std::this_thread::yield();
  EXPECT_EQ(ResidentPages(buffer), all);
  for (size_t at = 0; at < buffer.bytes(); at += 1'000'000)
    ASSERT_EQ(buffer.data()[at], std::byte{static_cast<unsigned char>(at == 5'000'000 ? 7 : 0)});
}

TEST(PageToucher, EndsInTheMiddle) {
  Buffer first = Buffer::Allocate(uint64_t{4} << 30, "test").value();
  Buffer second = Buffer::Allocate(uint64_t{1} << 20, "test").value();
  {
    PageToucher toucher;
    toucher.Begin({first.data(), first.bytes()});
    toucher.Begin({second.data(), second.bytes()});
  }
  const auto all = first.bytes() / static_cast<size_t>(sysconf(_SC_PAGESIZE));
  EXPECT_LT(ResidentPages(first), all / 2);
}

}  // namespace
}  // namespace lockstep
