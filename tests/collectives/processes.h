// Ranks as forked processes, for tests that kill them.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <string>
#include <vector>

#include "collectives/bootstrap.h"
#include "runtime/base/clock.h"
#include "tests/collectives/ranks.h"

namespace lockstep {

// How a process ended: its exit code, or -signal, and what it wrote.
struct Ended {
  int code = 0;
  std::string text;
  int64_t at_ns = 0;
};

class Processes {
 public:
  // `body` says ready() when it is where the test wants it.
  using Body = std::function<Status(Membership&, const std::function<void()>& ready)>;

  Processes(const std::vector<BootstrapOptions>& all, const Body& body) {
    for (size_t rank = 0; rank < all.size(); ++rank) {
      int ends[2];
      LOCKSTEP_CHECK(pipe(ends) == 0);
      const pid_t child = fork();
      LOCKSTEP_CHECK(child >= 0);
      if (child == 0) {
        // The pipes of earlier ranks would keep their ends open.
        for (const int fd : pipes_) (void)close(fd);
        (void)close(ends[0]);
        if (rank != 0 && all[0].rendezvous_fd >= 0) (void)close(all[0].rendezvous_fd);
        RunChild(all[rank], body, ends[1]);
      }
      (void)close(ends[1]);
      children_.push_back(child);
      pipes_.push_back(ends[0]);
    }
    if (all[0].rendezvous_fd >= 0) (void)close(all[0].rendezvous_fd);
  }
  ~Processes() {
    for (const pid_t child : children_) {
      if (child > 0) (void)kill(child, SIGKILL);
      if (child > 0) (void)waitpid(child, nullptr, 0);
    }
    for (const int fd : pipes_) (void)close(fd);
  }
  Processes(const Processes&) = delete;
  Processes& operator=(const Processes&) = delete;

  // Waits until every rank was ready; false after 30 s.
  bool AllReady() {
    for (const int fd : pipes_) {
      char byte = 0;
      pollfd entry{fd, POLLIN, 0};
      if (poll(&entry, 1, 30'000) != 1 || read(fd, &byte, 1) != 1 || byte != 'r') return false;
    }
    return true;
  }
  void Signal(int rank, int signal) { (void)kill(children_[rank], signal); }
  pid_t pid(int rank) const { return children_[rank]; }

  // What rank wrote at its end; waits for it.
  Ended Wait(int rank) {
    Ended ended;
    char buffer[4096];
    ssize_t got = 0;
    while ((got = read(pipes_[rank], buffer, sizeof(buffer))) > 0) {
      ended.text.append(buffer, static_cast<size_t>(got));
    }
    ended.at_ns = NowNs();
    int status = 0;
    (void)waitpid(children_[rank], &status, 0);
    children_[rank] = -1;
    ended.code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    // The readiness of a test that did not wait for it.
    if (!ended.text.empty() && ended.text[0] == 'r') ended.text.erase(0, 1);
    return ended;
  }

 private:
  [[noreturn]] static void RunChild(const BootstrapOptions& options, const Body& body, int out) {
    const Status status = [&]() -> Status {
      LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<Membership> membership, Bootstrap(options));
      Status result = body(*membership, [out] { (void)!write(out, "r", 1); });
      const std::string text = " " + MessageOf(result);
      (void)!write(out, text.data(), text.size());
      if (result.ok()) membership->Leave();
      return result;
    }();
    if (!status.ok()) {
      const std::string text = " " + MessageOf(status);
      (void)!write(out, text.data(), text.size());
    }
    _exit(ExitCode(status));
  }

  std::vector<pid_t> children_;
  std::vector<int> pipes_;
};

}  // namespace lockstep
