// Runs a body on N ranks, each a thread of this process with its own membership and group.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "collectives/bootstrap.h"
#include "gtest/gtest.h"

namespace lockstep::testing {

inline int FreePort() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  socklen_t size = sizeof(address);
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  close(fd);
  return ntohs(address.sin_port);
}

// body(membership, group) runs on every rank; returns when all ended.
inline void RunRanks(int ranks, const std::string& collective,
                     const std::function<void(Membership&, Group&)>& body) {
  const std::string rendezvous = "127.0.0.1:" + std::to_string(FreePort());
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      BootstrapOptions options;
      options.rank = rank;
      options.size = ranks;
      options.collective = collective;
      options.rendezvous = rendezvous;
      StatusOr<std::unique_ptr<Membership>> membership = Bootstrap(options);
      ASSERT_TRUE(membership.ok()) << membership.status();
      StatusOr<std::unique_ptr<Group>> group = (*membership)->OpenGroup();
      ASSERT_TRUE(group.ok()) << group.status();
      body(**membership, **group);
      (*membership)->Leave();
      group->reset();
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace lockstep::testing
