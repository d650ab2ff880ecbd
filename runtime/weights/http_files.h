// The files of a checkpoint on a web server, to be mounted (base/file.h) and read like local ones:
// what `lockstep files` serves (with its list), a directory of safetensors files (the index says
// which there are), or a .gguf file (its parts are found by their names).
//
// What is read: exactly what is asked for, but
//  - of ranges that are asked for together (ReadParts) and lie less than kHttpGapBytes apart, what
//    lies between them too: a request costs about that much;
//  - where a server has no strided ranges (http_answer.h), which lockstep files has, whoever wants
//    columns of a matrix reads its rows, and so where all of the rows are less than
//    kHttpSmallBytes;
//  - for a read of less than kHttpSmallBytes, the block of kHttpBlockBytes around it: headers,
//    scales and norms lie side by side. The last 32 MiB of blocks are kept.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/base/file.h"
#include "runtime/base/status.h"
#include "runtime/weights/http_client.h"

namespace lockstep {

inline constexpr uint64_t kHttpGapBytes = uint64_t{64} << 10;
inline constexpr uint64_t kHttpSmallBytes = uint64_t{64} << 10;
inline constexpr uint64_t kHttpBlockBytes = uint64_t{256} << 10;

class HttpFiles final : public FileSource {
 public:
  // Finds out what is there: a few requests. Errors name the URL.
  static StatusOr<std::unique_ptr<HttpFiles>> Connect(const std::string& url,
                                                      const HttpOptions& options);
  ~HttpFiles() override;

  // Where to mount it: the URL of the directory.
  const std::string& directory() const { return place_.directory; }
  // What to open then: the directory, or the .gguf file that the URL names.
  std::string model() const;

  StatusOr<std::unique_ptr<RandomAccessFile>> Open(const std::string& name) const override;
  bool Exists(const std::string& name) const override;
  std::vector<std::string> List() const override;

  uint64_t bytes_received() const { return client_.bytes_received(); }
  // Of all files that were opened.
  uint64_t bytes_of_files() const;

 private:
  friend class HttpFile;
  struct Remote;
  using Block = std::shared_ptr<const std::vector<std::byte>>;
  using BlockKey = std::pair<const Remote*, uint64_t>;  // the file, the number of the block

  HttpFiles(HttpPlace place, const HttpOptions& options);
  Status Discover();
  StatusOr<bool> TakeList(const std::string& text);
  Status AskForIndex();
  // The file's facts, asked for once; nullptr if it is not there.
  StatusOr<Remote*> Find(const std::string& name) const;
  StatusOr<std::string> Text(const std::string& name) const;

  Status Read(Remote* remote, uint64_t offset, std::span<std::byte> out) const;
  Status ReadParts(Remote* remote, std::span<const FilePart> parts) const;
  // False, with `out` in any state, unless all of it is in blocks that were kept.
  bool ReadCached(const Remote* remote, uint64_t offset, std::span<std::byte> out) const;
  Block CachedBlock(const Remote* remote, uint64_t number) const;
  void KeepBlocks(const Remote* remote, uint64_t offset, std::span<const std::byte> bytes) const;

  const HttpPlace place_;
  mutable HttpClient client_;
  bool listed_ = false;  // names_ are all that there are
  std::vector<std::string> names_;
  mutable bool patient_ = false;  // the server has answered before

  mutable std::mutex mutex_;  // over what follows; not held while the network is used
  mutable std::map<std::string, std::unique_ptr<Remote>> remotes_;
  mutable std::mutex finding_;  // one file is asked for at a time

  mutable std::mutex blocks_mutex_;  // over what follows
  mutable std::map<BlockKey, Block> blocks_;
  mutable std::list<BlockKey> oldest_first_;
};

}  // namespace lockstep
