// rdma_exchange MODE INTERFACE COUNT: two processes add 10 KB of floats COUNT times over RDMA,
// verify every sum, and print how long one took.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "runtime/base/log.h"
#include "tests/collectives/checks.h"
#include "tests/collectives/processes.h"

namespace lockstep {
namespace {

constexpr size_t kFloats = 2560;
constexpr uint32_t kSeeds = 8;  // different data, expected sums computed beforehand

Status Exchange(Group& group, int count) {
  std::vector<std::vector<float>> own, expected;
  for (uint32_t seed = 0; seed < kSeeds; ++seed) {
    own.push_back(Contribution(group.rank(), kFloats, seed));
    expected.push_back(Contribution(0, kFloats, seed));
    const std::vector<float> other = Contribution(1, kFloats, seed);
    for (size_t i = 0; i < kFloats; ++i) expected.back()[i] += other[i];
  }
  std::vector<int64_t> times;
  for (int i = 0; i < count; ++i) {
    std::vector<float> data = own[static_cast<size_t>(i) % kSeeds];
    const int64_t start = NowNs();
    LOCKSTEP_RETURN_IF_ERROR(AllReduceSum(group, data));
    times.push_back(NowNs() - start);
    if (data != expected[static_cast<size_t>(i) % kSeeds]) {
      return InternalError("sum number %d is wrong", i);
    }
  }
  std::sort(times.begin(), times.end());
  if (group.rank() == 0) {
    std::printf("exchange: p50 %.1f us, p99 %.1f us\n",
                static_cast<double>(times[times.size() / 2]) / 1e3,
                static_cast<double>(times[times.size() * 99 / 100]) / 1e3);
    (void)std::fflush(stdout);
  }
  return OkStatus();
}

int Run(const std::string& mode, const std::string& interface, int count) {
  std::vector<BootstrapOptions> all = LocalRanks(2, "rdma_" + mode);
  for (BootstrapOptions& options : all) options.interface = interface;
  Processes ranks(all, [&](Membership& membership, const std::function<void()>&) -> Status {
    LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<Group> group, membership.OpenGroup());
    return Exchange(*group, count);
  });
  int code = 0;
  for (const int rank : {0, 1}) {
    const Ended ended = ranks.Wait(rank);
    if (ended.code == 0) continue;
    code = 1;
    std::fprintf(stderr, "rank %d: code %d,%s\n", rank, ended.code, ended.text.c_str());
  }
  return code;
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  lockstep::log::Configure(lockstep::log::Level::kInfo, -1);
  return lockstep::Run(argv[1], argv[2], std::atoi(argv[3]));
}
