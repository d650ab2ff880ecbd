// Commands on the nodes of a cluster, all at the same time: over ssh, on this machine without it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/status.h"

namespace lockstep {

struct NodeCommand {
  std::string host;    // whom ssh asks; empty: this machine
  std::string script;  // of a POSIX shell, one line
  std::string input;   // what it reads from stdin
};

struct NodeAnswer {
  int exit_code = 0;  // of the script; 255 over ssh: ssh itself failed
  std::string out;
  std::string error;  // what it wrote to stderr; of both at most kLongestNodeAnswer bytes are kept
};
inline constexpr size_t kLongestNodeAnswer = size_t{256} << 10;

// How long ssh tries to connect. It never asks for a password.
inline constexpr int kSshConnectSeconds = 10;

// `text` as one word of a POSIX shell, whatever it holds.
std::string ShellWord(std::string_view text);

// What is run for `command`: `ssh` are a program and its flags, separated by spaces. An error where
// the host could be taken for something else than a host.
StatusOr<std::vector<std::string>> CommandLineOf(const std::string& ssh,
                                                 const NodeCommand& command);

// Runs them, and returns what came of each, in their order. An error: it could not be started, was
// killed by a signal, or has not ended after `timeout_ms` and was killed here. From the thread that
// lives as long as the process: the commands end with it.
std::vector<StatusOr<NodeAnswer>> RunOnNodes(const std::string& ssh,
                                             std::span<const NodeCommand> commands,
                                             int64_t timeout_ms);

// Whom a command was given to, for messages.
struct AskedNode {
  std::string name;     // "rank 1 (spark-2)"
  std::string host;     // as in NodeCommand
  std::string ssh;      // program and flags
  std::string program;  // that the script runs
};
// What the command wrote to stdout where it ended well. Else an error that says what was wrong with
// reaching the node, with the program there, or with the command by its own word.
StatusOr<std::string> OutputOf(const StatusOr<NodeAnswer>& answer, const AskedNode& node);

// An error where other machines would look for `path` in another directory; `where` and `key` name
// it. Empty is none.
Status CheckWholePath(const std::string& where, const char* key, const std::string& path);

}  // namespace lockstep
