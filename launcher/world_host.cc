// The parts of world.h that ask the system: own addresses, and running again under mpirun.
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "launcher/process.h"
#include "launcher/world.h"
#include "runtime/base/os.h"

namespace lockstep {
namespace {

bool SameAddress(const sockaddr* a, const sockaddr* b) {
  if (a == nullptr || b == nullptr || a->sa_family != b->sa_family) return false;
  if (a->sa_family == AF_INET) {
    return reinterpret_cast<const sockaddr_in*>(a)->sin_addr.s_addr ==
           reinterpret_cast<const sockaddr_in*>(b)->sin_addr.s_addr;
  }
  if (a->sa_family == AF_INET6) {
    return std::memcmp(&reinterpret_cast<const sockaddr_in6*>(a)->sin6_addr,
                       &reinterpret_cast<const sockaddr_in6*>(b)->sin6_addr, sizeof(in6_addr)) == 0;
  }
  return false;
}

}  // namespace

bool IsOwnHost(const std::string& host) {
  if (host == os::HostName()) return true;
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), nullptr, &hints, &found) != 0) return false;
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> addresses(found, &freeaddrinfo);
  ifaddrs* listed = nullptr;
  if (getifaddrs(&listed) != 0) return false;
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> interfaces(listed, &freeifaddrs);
  for (const addrinfo* address = found; address != nullptr; address = address->ai_next) {
    for (const ifaddrs* own = listed; own != nullptr; own = own->ifa_next) {
      if (SameAddress(address->ai_addr, own->ifa_addr)) return true;
    }
  }
  return false;
}

std::vector<std::string> MpirunCommand(int ranks, bool as_root,
                                       const std::vector<std::string>& arguments) {
  // Open MPI counts cores as slots, not hardware threads, and refuses more ranks than slots; which
  // CPUs a rank uses is decided here, not by mpirun.
  std::vector<std::string> command = {"mpirun", "--oversubscribe"};
  if (as_root) command.push_back("--allow-run-as-root");
  command.insert(command.end(), {"-n", std::to_string(ranks)});
  command.insert(command.end(), arguments.begin(), arguments.end());
  return command;
}

Status ReexecUnderMpirun(int ranks) {
  std::vector<std::string> arguments = ProcessArguments();
  if (!arguments.empty()) arguments.front() = ExecutablePath();
  std::vector<std::string> command = MpirunCommand(ranks, geteuid() == 0, arguments);
  std::vector<char*> raw;
  for (std::string& word : command) raw.push_back(word.data());
  raw.push_back(nullptr);
  execvp(raw.front(), raw.data());
  if (errno == ENOENT) {
    return UsageError(
        "--collective mpi needs mpirun, which is not installed: apt-get install openmpi-bin");
  }
  return InternalError("cannot run mpirun: %s", std::strerror(errno));
}

}  // namespace lockstep
