// The commands of the one binary. Each reads its own options; none parses flags. Rank 0 alone
// writes to stdout.
#pragma once

#include "runtime/base/options.h"
#include "runtime/base/status.h"

namespace lockstep {

Status RunCommand(const Options& options);         // one prompt, streamed
Status ChatCommand(const Options& options);        // a conversation in the terminal
Status ServeCommand(const Options& options);       // HTTP and gRPC
Status WorkerCommand(const Options& options);      // ranks 1.. of a cluster
Status LogitsCommand(const Options& options);      // raw head rows for token lists
Status TokenizeCommand(const Options& options);    // JSON lines: text to ids
Status DetokenizeCommand(const Options& options);  // JSON lines: ids to text
Status RenderCommand(const Options& options);      // JSON lines: messages to prompt text
Status InspectCommand(const Options& options);     // what a checkpoint holds
Status ShardCommand(const Options& options);       // a checkpoint to one file per rank
Status FilesCommand(const Options& options);       // a directory's files by HTTP
Status VerifyCommand(const Options& options);      // the files of ranks: whole, and right
Status BenchCommand(const Options& options);       // kernels, collectives, ...
Status BurnCommand(const Options& options);        // hours of load, and a verdict
Status DoctorCommand(const Options& options);      // this machine, every link between ranks
Status PlanCommand(const Options& options);        // memory, speed and cost, before buying
Status SimulateCommand(const Options& options);    // a trace of requests, on a virtual clock
Status UpCommand(const Options& options);          // starts the ranks of a cluster YAML
Status DownCommand(const Options& options);        // ends them
Status StatusCommand(const Options& options);      // shows them
Status VersionCommand(const Options& options);

}  // namespace lockstep
