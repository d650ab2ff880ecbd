// The threads of one block, taking turns on one thread of the host.
#pragma once

#include <functional>

namespace emulation {

// Runs `body` once for each of `threads` threads; with `descending` the last one gets its turn
// first. Ends the process with a sentence if some wait for others that have ended, or that wait
// elsewhere.
void RunThreads(int threads, bool descending, const std::function<void()>& body);

// For `body` alone: the thread whose turn it is, and waiting for all threads of its block, or of
// its warp.
int CurrentThread();
void WaitForBlock();
void WaitForWarp();

}  // namespace emulation
