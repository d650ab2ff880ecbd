// The process of one rank on its node: how `lockstep up`, `down` and `status` start it, end it and
// find it again. In a directory, the one of the cluster, they keep of rank N
//
//     rank-N.pid    its process id and when it was started; the process holds a lock on this file
//                   for as long as it lives, so that no other process that later gets its number
//                   is taken for it. Empty while it is being started
//     rank-N.log    what it wrote to stdout and stderr; rank-N.log.1 is that of the process before
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "runtime/base/status.h"

namespace lockstep {

struct RankProcess {
  bool running = false;
  int64_t pid = 0;         // of the last one that was started; 0: none ever was
  int64_t started_at = 0;  // seconds since 1970
  bool ready = false;      // it has said that it serves
  int port = 0;            // where, if it is
};

// Starts `arguments` (the program first) as rank `rank` in the background: in a session of its own,
// with the working directory of this process. A usage error if the rank runs already. `prepare` is
// called before, when it is certain that it does not, and nobody else starts it meanwhile; its
// error is the answer.
StatusOr<RankProcess> StartRank(const std::string& directory, int rank,
                                const std::vector<std::string>& arguments,
                                const std::function<Status()>& prepare = {});

StatusOr<RankProcess> FindRank(const std::string& directory, int rank);

enum class RankEnd { kWasNotRunning, kEnded, kKilled };
// SIGTERM, and SIGKILL to what has not ended `patience_ms` later. An error, and no signal, while
// another one starts the rank and its process is not known yet.
StatusOr<RankEnd> EndRank(const std::string& directory, int rank, int64_t patience_ms);

// The end of its log, whole lines.
std::string LastWordsOfRank(const std::string& directory, int rank);

// What a server says of itself at GET /health/ready: "ready", "not ready", or why it cannot be
// asked. Waits for three seconds at most.
std::string AskHealth(const std::string& host, int port);

}  // namespace lockstep
