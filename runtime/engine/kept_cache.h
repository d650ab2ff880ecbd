// The prefix cache over a restart: at an orderly end every rank writes its pages of the published
// KV blocks to a file of its own (runtime/cache/kept_file.h), and at the next start the ranks take
// them back if all of them have those of the same save.
//
// Nothing here ends a server: what cannot be read starts cold, what cannot be written is not kept,
// and rank 0 says in one line why, with the rank. An error is one of the group.
//
// Ranks wait for each other's disks as long as all are alive: no deadline bounds a file system that
// hangs (NFS without its server). A signal does: while it restores, rank 0 ends all ranks with it,
// and while it saves, a second one ends the process.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "collectives/group.h"
#include "runtime/base/status.h"
#include "runtime/cache/kept_file.h"
#include "runtime/engine/plan.h"
#include "runtime/model/model.h"

namespace lockstep {

class KeptCache {
 public:
  // `key`: a line "name: value" for everything that decides the bits of this rank's KV pages. Pages
  // kept under another key are not taken. `health` is asked before each page; its error ends
  // Restore and Save as one of the group (empty: always fine).
  KeptCache(std::string directory, std::string key, std::function<Status()> health = {});

  // Collective, before the first step. Fills the model's KV blocks 0, 1, ... and returns what they
  // hold: the same on all ranks, none of it on any if one rank cannot. `names` are the ranks'.
  StatusOr<std::vector<ChainedBlock>> Restore(Model& model, Group& group,
                                              const std::vector<std::string>& names);
  // Collective. The files of the save before stay where they are unless all ranks have written
  // theirs. If then one cannot be put in place, the files are of two saves, and neither comes back.
  Status Save(const KeptBlocks& kept, const Model& model, Group& group,
              const std::vector<std::string>& names);
  // True from the beginning of Save to its return: as long as the disks take. Any thread.
  bool saving() const { return saving_; }

 private:
  struct Word;
  std::string PathOf(const Group& group) const;
  Status Health() const { return health_ ? health_() : OkStatus(); }
  // The directory is there, this user's alone, and without what a killed process left of `path`.
  Status Prepare(const std::string& path) const;
  // The first `count` pages of the file.
  Status ReadPages(const KeptReader& file, size_t count, Model* model) const;
  // This rank's file, checked but for its pages; null: there is none.
  StatusOr<std::unique_ptr<KeptReader>> OpenFile(const Model& model, const Group& group) const;
  StatusOr<std::unique_ptr<KeptWriter>> WriteFile(const KeptBlocks& kept, const Model& model,
                                                  const Group& group) const;

  const std::string directory_;
  const std::string key_;
  const std::function<Status()> health_;
  std::atomic<bool> saving_{false};
};

}  // namespace lockstep
