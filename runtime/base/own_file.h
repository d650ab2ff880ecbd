// Files that decide what this process does and that no other user may decide. Defined in file.cc.
#pragma once

#include <memory>
#include <string>

#include "runtime/base/file.h"
#include "runtime/base/status.h"

namespace lockstep {

// OK if `path` is a directory of this user in which no other may write.
Status CheckOwnDirectory(const std::string& path);
// The file of this machine at `path` (directory and name), if it is there; null: it is not. An
// error if the file or its directory is another user's or may be written by one, or the name is a
// link.
StatusOr<std::unique_ptr<RandomAccessFile>> OpenOwnFile(const std::string& path);

}  // namespace lockstep
