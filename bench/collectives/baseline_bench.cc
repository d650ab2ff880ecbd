// What lockstep's exchange is compared with, without any of lockstep's code:
//
//   mpirun -n N baseline_bench allreduce SIZES REPETITIONS    Open MPI's MPI_Allreduce, in place
//   baseline_bench memory SIZES REPETITIONS                   a ping-pong through shared memory
//   baseline_bench listen ADDRESS PORT SIZES REPETITIONS      a ping-pong over TCP: one side
//   baseline_bench connect ADDRESS PORT SIZES REPETITIONS     ... and the other
//
// SIZES are bytes, parted by commas; large ones are repeated less often. Everything spins. With as
// many cores as ranks, each rank keeps to one core. Prints one JSON line per size; a ping-pong's
// time is half a round trip, that of an all-reduce is the slowest rank's. Results are checked.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

#define OMPI_SKIP_MPICXX 1
#include <mpi.h>

namespace {

constexpr int kWarmUp = 20;
constexpr size_t kBytesPerRound = size_t{128} << 20;
constexpr size_t kFewestRepetitions = 30;
// A side that waits longer than this gives up.
constexpr double kPatienceUs = 30e6;

double NowUs() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::micro>(now).count();
}

[[noreturn]] void Fail(const std::string& what) {
  std::fprintf(stderr, "baseline_bench: %s: %s\n", what.c_str(), std::strerror(errno));
  std::exit(1);
}

struct Plan {
  std::vector<size_t> sizes;
  size_t repetitions = 0;
  size_t Of(size_t bytes) const {
    return std::clamp(kBytesPerRound / bytes, kFewestRepetitions, repetitions);
  }
};

Plan ParsePlan(const char* sizes, const char* repetitions) {
  Plan plan;
  std::stringstream text(sizes);
  for (std::string size; std::getline(text, size, ',');) {
    plan.sizes.push_back(std::strtoull(size.c_str(), nullptr, 10));
    if (plan.sizes.back() < 4 || plan.sizes.back() % 4 != 0) Fail("a wrong size");
  }
  plan.repetitions = std::max(std::strtoull(repetitions, nullptr, 10), 30ULL);
  return plan;
}

void KeepToCore(int rank, int ranks) {
  const long cores = sysconf(_SC_NPROCESSORS_ONLN);
  if (ranks > cores) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(rank, &set);
  (void)sched_setaffinity(0, sizeof(set), &set);
}

void Report(const char* transport, const char* algorithm, int ranks, size_t bytes,
            std::vector<double> us) {
  std::sort(us.begin(), us.end());
  const double p50 = us[us.size() / 2];
  std::printf(
      "{\"transport\": \"%s\", \"algorithm\": \"%s\", \"ranks\": %d, \"dtype\": \"float32\", "
      "\"bytes\": %zu, \"reps\": %zu, \"p50_us\": %.3f, \"p99_us\": %.3f, \"gb_per_s\": %.4f}\n",
      transport, algorithm, ranks, bytes, us.size(), p50, us[us.size() * 99 / 100],
      static_cast<double>(bytes) / p50 * 1e-3);
  std::fflush(stdout);
}

// --- MPI_Allreduce ---

void AllReduce(const Plan& plan) {
  if (MPI_Init(nullptr, nullptr) != MPI_SUCCESS) Fail("MPI_Init");
  int rank = 0, ranks = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  KeepToCore(rank, ranks);
  for (const size_t bytes : plan.sizes) {
    const size_t count = bytes / sizeof(float);
    std::vector<float> mine(count), sum(count), data(count);
    for (size_t i = 0; i < count; ++i) {
      // Whole numbers: every order of additions has the same sum.
      const auto value = [&](int of) { return static_cast<float>((i * 7 + of * 13) % 1009); };
      mine[i] = value(rank);
      for (int other = 0; other < ranks; ++other) sum[i] += value(other);
    }
    const size_t repetitions = plan.Of(bytes);
    std::vector<double> us;
    for (size_t i = 0; i < repetitions + kWarmUp; ++i) {
      data = mine;
      const double start = NowUs();
      MPI_Allreduce(MPI_IN_PLACE, data.data(), static_cast<int>(count), MPI_FLOAT, MPI_SUM,
                    MPI_COMM_WORLD);
      if (i >= kWarmUp) us.push_back(NowUs() - start);
      if (data != sum) Fail("a wrong sum");
    }
    std::vector<double> slowest(us.size());
    MPI_Reduce(us.data(), slowest.data(), static_cast<int>(us.size()), MPI_DOUBLE, MPI_MAX, 0,
               MPI_COMM_WORLD);
    if (rank == 0) Report("mpi", "MPI_Allreduce", ranks, bytes, slowest);
  }
  MPI_Finalize();
}

// --- the ping-pongs ---

// `send` and `receive` move a whole buffer, spinning. Side 0 measures and checks the echo.
template <typename Send, typename Receive>
void Bounce(const Plan& plan, int side, const char* transport, Send send, Receive receive) {
  for (const size_t bytes : plan.sizes) {
    std::vector<char> out(bytes), in(bytes);
    const size_t repetitions = plan.Of(bytes) + kWarmUp;
    std::vector<double> us;
    for (size_t i = 0; i < repetitions; ++i) {
      if (side == 1) {
        receive(in);
        send(in);
        continue;
      }
      std::memset(out.data(), static_cast<int>(i), bytes);
      const double start = NowUs();
      send(out);
      receive(in);
      if (i >= kWarmUp) us.push_back((NowUs() - start) / 2);
      if (in != out) Fail("a wrong echo");
    }
    if (side == 0) Report(transport, "ping-pong", 2, bytes, us);
  }
}

// Gives up when nothing happened for too long; looks at the clock rarely.
class Patience {
 public:
  void Look() {
    if (++looks_ % 65536 != 0) return;
    if (start_us_ == 0) start_us_ = NowUs();
    if (NowUs() - start_us_ > kPatienceUs) Fail("the other side is silent");
  }

 private:
  unsigned looks_ = 0;
  double start_us_ = 0;
};

struct Box {
  alignas(64) std::atomic<uint64_t> full;
  alignas(64) char data[1];
};

// One copy into shared memory, one flag, one copy out.
void Memory(const Plan& plan) {
  const size_t largest = *std::max_element(plan.sizes.begin(), plan.sizes.end());
  const size_t stride = (sizeof(Box) + largest + 4095) / 4096 * 4096;
  void* shared =
      mmap(nullptr, 2 * stride, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) Fail("mmap");
  const pid_t child = fork();
  if (child < 0) Fail("fork");
  const int side = child == 0 ? 1 : 0;
  if (side == 1) (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
  KeepToCore(side, 2);
  const auto box = [&](int of) {
    return reinterpret_cast<Box*>(static_cast<char*>(shared) + stride * static_cast<size_t>(of));
  };
  Box* own = box(side);
  Box* other = box(1 - side);
  uint64_t sent = 0, received = 0;
  Bounce(
      plan, side, "shm",
      [&](const std::vector<char>& data) {
        std::memcpy(own->data, data.data(), data.size());
        own->full.store(++sent, std::memory_order_release);
      },
      [&](std::vector<char>& data) {
        ++received;
        Patience patience;
        while (other->full.load(std::memory_order_acquire) != received) patience.Look();
        std::memcpy(data.data(), other->data, data.size());
      });
  if (side == 1) _exit(0);
  int status = 0;
  if (waitpid(child, &status, 0) != child || status != 0) Fail("the other side failed");
}

int Connected(bool listens, const char* address, int port) {
  sockaddr_in place{};
  place.sin_family = AF_INET;
  place.sin_port = htons(static_cast<uint16_t>(port));
  if (inet_pton(AF_INET, address, &place.sin_addr) != 1) Fail("a wrong address");
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  const auto* where = reinterpret_cast<const sockaddr*>(&place);
  if (listens) {
    if (bind(fd, where, sizeof(place)) != 0 || listen(fd, 1) != 0) Fail("cannot listen");
    alarm(30);
    const int peer = accept4(fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    alarm(0);
    if (peer < 0) Fail("accept");
    (void)close(fd);
    return peer;
  }
  for (int attempt = 0; connect(fd, where, sizeof(place)) != 0; ++attempt) {
    if (attempt == 500) Fail("cannot connect");
    usleep(20'000);
  }
  return fd;
}

// One non-blocking call per message where the kernel takes it whole.
void Tcp(const Plan& plan, bool listens, const char* address, int port) {
  const int side = listens ? 1 : 0;
  KeepToCore(side, 2);
  const int fd = Connected(listens, address, port);
  const int on = 1, buffer = 512 << 10;
  (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof(buffer));
  (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof(buffer));
  const auto move = [fd](auto call, auto* data, size_t bytes) {
    Patience patience;
    while (bytes > 0) {
      const ssize_t moved = call(fd, data, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (moved == 0 || (moved < 0 && errno != EAGAIN && errno != EINTR)) Fail("the connection");
      if (moved < 0) patience.Look();
      if (moved < 0) continue;
      data += moved;
      bytes -= static_cast<size_t>(moved);
    }
  };
  Bounce(
      plan, side, "tcp",
      [&](const std::vector<char>& data) { move(&send, data.data(), data.size()); },
      [&](std::vector<char>& data) { move(&recv, data.data(), data.size()); });
  (void)close(fd);
}

int Main(const std::vector<std::string>& words) {
  const auto is = [&](const char* mode, size_t count) {
    return words.size() == count && words[1] == mode;
  };
  if (is("allreduce", 4)) {
    AllReduce(ParsePlan(words[2].c_str(), words[3].c_str()));
  } else if (is("memory", 4)) {
    Memory(ParsePlan(words[2].c_str(), words[3].c_str()));
  } else if (is("listen", 6) || is("connect", 6)) {
    Tcp(ParsePlan(words[4].c_str(), words[5].c_str()), words[1] == "listen", words[2].c_str(),
        std::atoi(words[3].c_str()));
  } else {
    std::fprintf(stderr, "usage: see the first lines of baseline_bench.cc\n");
    return 2;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return Main(std::vector<std::string>(argv, argv + argc)); }
