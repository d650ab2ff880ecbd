// How long an exchange takes: `exchange_bench [RANKS] [REPETITIONS]` starts local ranks as
// processes over shm and tcp, `mpirun -n N exchange_bench - [REPETITIONS]` measures mpi. One JSON
// line per transport, operation and size on stdout. The time is that of the slowest rank, per
// repetition.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "collectives/bootstrap.h"
#include "runtime/base/clock.h"

namespace lockstep {
namespace {

constexpr size_t kSizes[] = {4, 1024, 10'240, 20'480, 81'920, 1 << 20, 5 << 20};

struct Timing {
  double p50_us = 0;
  double p99_us = 0;
};

// Gathers every rank's times and keeps the slowest rank's of each repetition.
StatusOr<Timing> SlowestOf(Group& group, const std::vector<float>& mine_us) {
  const auto mine = std::as_bytes(std::span(mine_us));
  std::vector<float> all(mine_us.size() * static_cast<size_t>(group.size()));
  LOCKSTEP_RETURN_IF_ERROR(AllGather(group, mine, std::as_writable_bytes(std::span(all))));
  std::vector<float> slowest(mine_us.size(), 0);
  for (size_t i = 0; i < all.size(); ++i) {
    float& value = slowest[i % mine_us.size()];
    value = std::max(value, all[i]);
  }
  std::sort(slowest.begin(), slowest.end());
  return Timing{slowest[slowest.size() / 2], slowest[slowest.size() * 99 / 100]};
}

Status MeasureSize(Group& group, size_t bytes, int repetitions) {
  std::vector<float> data(bytes / sizeof(float), 1.0f);
  std::vector<float> times_us;
  const int warm_up = repetitions / 10 + 10;
  for (int i = 0; i < warm_up + repetitions; ++i) {
    std::fill(data.begin(), data.end(), static_cast<float>(group.rank()));
    const int64_t start = NowNs();
    LOCKSTEP_RETURN_IF_ERROR(AllReduceSum(group, data));
    if (i >= warm_up) times_us.push_back(static_cast<float>(NowNs() - start) / 1e3f);
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const Timing timing, SlowestOf(group, times_us));
  if (group.rank() == 0) {
    std::printf(
        "{\"transport\": \"%s\", \"operation\": \"all_reduce\", \"algorithm\": \"direct\", "
        "\"ranks\": %d, "
        "\"dtype\": \"float32\", \"bytes\": %zu, \"repetitions\": %d, \"p50_us\": %.2f, "
        "\"p99_us\": %.2f, "
        "\"gb_per_s\": %.3f}\n",
        group.traits().name, group.size(), bytes, repetitions, timing.p50_us, timing.p99_us,
        static_cast<double>(bytes) / timing.p50_us / 1e3);
    std::fflush(stdout);
  }
  return OkStatus();
}

Status Measure(const BootstrapOptions& options, int repetitions) {
  LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<Membership> membership, Bootstrap(options));
  {
    LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<Group> group, membership->OpenGroup());
    for (const size_t bytes : kSizes) {
      const int count = bytes > (200 << 10) ? std::max(repetitions / 20, 20) : repetitions;
      LOCKSTEP_RETURN_IF_ERROR(MeasureSize(*group, bytes, count));
    }
  }
  membership->Leave();
  return OkStatus();
}

int Report(const Status& status) {
  if (!status.ok()) std::fprintf(stderr, "%s\n", MessageOf(status).c_str());
  return ExitCode(status);
}

// Ranks as processes of this one.
int MeasureLocally(int ranks, int repetitions) {
  int worst = 0;
  for (const char* collective : {"shm", "tcp"}) {
    BootstrapOptions options;
    options.size = ranks;
    options.collective = collective;
    options.secret = GenerateSecret();
    const StatusOr<int> listener = ListenForRanks("127.0.0.1", &options.rendezvous);
    if (!listener.ok()) return Report(listener.status());
    for (int rank = 0; rank < ranks; ++rank) {
      if (fork() != 0) continue;
      options.rank = rank;
      if (rank == 0) {
        options.rendezvous_fd = *listener;
      } else {
        (void)close(*listener);
      }
      _exit(Report(Measure(options, repetitions)));
    }
    (void)close(*listener);
    int status = 0;
    while (wait(&status) > 0) worst = std::max(worst, WIFEXITED(status) ? WEXITSTATUS(status) : 1);
  }
  return worst;
}

int Main(int argc, char** argv) {
  BootstrapOptions options;
  int local_rank = 0, local_size = 0;
  const bool mpirun = DetectMpirun(&options.rank, &options.size, &local_rank, &local_size);
  const int ranks = mpirun ? options.size : argc > 1 ? std::atoi(argv[1]) : 2;
  const int repetitions = argc > 2 ? std::atoi(argv[2]) : 5000;
  if (ranks < 1 || repetitions < 1) {
    std::fprintf(stderr, "usage: exchange_bench [RANKS] [REPETITIONS]\n");
    return 2;
  }
  if (!mpirun) return MeasureLocally(ranks, repetitions);
  options.collective = "mpi";
  return Report(Measure(options, repetitions));
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) { return lockstep::Main(argc, argv); }
