// A communicator that does not block: what NCCL begins it does in the background, and says by its
// state when it has done so. Used by one thread at a time.
#pragma once

#include <memory>

#include "collectives/lifeline.h"
#include "collectives/nccl/nccl_library.h"

namespace lockstep::nccl {

class Communicator {
 public:
  // On GPU `device`. `library` outlives this process's threads.
  Communicator(const Library& library, int device);
  ~Communicator();  // aborts, unless it has ended
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  // Begins to join the others that have this id. Then State() says how it goes.
  ncclResult_t Join(const ncclUniqueId& id, int rank, int size);
  // ncclInProgress: nothing may be called but State() and Abort(). An error is final.
  ncclResult_t State() const;
  ncclComm_t get() const { return *handle_; }

  // `calls` (sends, receives, sums) as one group of NCCL's. Until State() is ncclSuccess their
  // kernels may not be on the stream, and what is put there comes before them.
  template <typename Calls>
  ncclResult_t Issue(Calls&& calls) {
    ncclResult_t result = library_.group_start();
    if (Failed(result)) return result;
    result = calls(get());
    // After an error too: a group that stays open would hold back this thread's later calls.
    const ncclResult_t ended = library_.group_end();
    return Failed(result) ? result : ended;
  }

  // Ends kernels that wait for a peer, and the communicator. More than once is once.
  void Abort();
  // In order, when all is done; the other ranks do the same within seconds, or it is an abort.
  void Finish(const Lifeline& lifeline);

 private:
  void End(decltype(&::ncclCommAbort) how);

  const Library& library_;
  int device_;
  // NCCL writes it when it has joined, which may be after this object is gone if End() gave up.
  std::shared_ptr<ncclComm_t> handle_;
  bool ended_ = false;
};

}  // namespace lockstep::nccl
