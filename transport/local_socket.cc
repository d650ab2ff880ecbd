// Unix sockets between processes of one machine, which also carry file descriptors (shm links).
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <random>

#include "transport/socket.h"

namespace lockstep {
namespace {

// Linux has names that exist only as long as the socket ("abstract", written here with a leading
// '@'); elsewhere the name is a file that ListenLocal's caller unlinks by closing: it is removed as
// soon as the mesh stands.
socklen_t FillAddress(const std::string& name, sockaddr_un* address) {
  std::memset(address, 0, sizeof(*address));
  address->sun_family = AF_UNIX;
  const size_t size = std::min(name.size(), sizeof(address->sun_path) - 1);
  std::memcpy(address->sun_path, name.data(), size);
  if (name.front() == '@') {
    address->sun_path[0] = '\0';
    return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + size);
  }
  return sizeof(*address);
}

std::string RandomName() {
  std::random_device random;
  std::string name;
  for (int word = 0; word < 4; ++word) name += absl::StrFormat("%08x", random());
#ifdef __linux__
  return "@lockstep-" + name;
#else
  return "/tmp/lockstep-" + name;
#endif
}

UniqueFd MakeLocalSocket() {
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM, 0));
  if (!fd.valid()) return fd;
  (void)fcntl(fd.get(), F_SETFL, fcntl(fd.get(), F_GETFL) | O_NONBLOCK);
  (void)fcntl(fd.get(), F_SETFD, FD_CLOEXEC);
#ifdef SO_NOSIGPIPE
  const int on = 1;
  (void)setsockopt(fd.get(), SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof(on));
#endif
  return fd;
}

}  // namespace

StatusOr<UniqueFd> ListenLocal(std::string* name) {
  *name = RandomName();
  sockaddr_un address;
  const socklen_t size = FillAddress(*name, &address);
  UniqueFd fd = MakeLocalSocket();
  if (!fd.valid() || bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), size) != 0 ||
      listen(fd.get(), 128) != 0) {
    return InternalError("cannot open a Unix socket for the shm links: %s", std::strerror(errno));
  }
  return fd;
}

StatusOr<UniqueFd> ConnectLocal(const std::string& name) {
  if (name.empty()) return InternalError("the name of a Unix socket is empty");
  sockaddr_un address;
  const socklen_t size = FillAddress(name, &address);
  UniqueFd fd = MakeLocalSocket();
  if (!fd.valid() || connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), size) != 0) {
    return PeerLostError(
        "cannot connect to the Unix socket '%s': %s; shm links work only between processes of one "
        "machine that share a network namespace",
        name, std::strerror(errno));
  }
  return fd;
}

}  // namespace lockstep
