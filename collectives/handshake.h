// The messages by which ranks find each other (docs/wire.md), and their checks. Pure functions over
// bytes: a stranger's bytes are parsed here, nothing is allocated before its length is bounded.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "collectives/bootstrap.h"
#include "collectives/secret.h"
#include "runtime/base/status.h"

namespace lockstep {

inline constexpr std::array<char, 8> kHandshakeMagic = {'L', 'O', 'C', 'K', 'S', 'T', 'E', 'P'};
inline constexpr uint32_t kProtocolVersion = 1;
inline constexpr size_t kLargestBody = size_t{256} << 10;

// Rank 0 speaks first: 44 bytes.
struct Greeting {
  std::array<char, 8> magic = kHandshakeMagic;
  uint32_t version = kProtocolVersion;
  Challenge challenge{};
};
static_assert(sizeof(Greeting) == 44);

// What a rank says about itself.
struct Hello {
  uint32_t rank = 0;
  uint32_t size = 0;
  uint32_t pid = 0;
  std::string host;
  std::string machine;  // equal for processes of one machine
  std::vector<Setting> settings;
};

// What a rank learns when all are there, or why it is refused.
struct Member {
  uint32_t rank = 0;
  uint32_t pid = 0;
  std::string host;
  std::string machine;
  std::string address;
};
struct Verdict {
  bool accepted = false;
  ErrorKind kind = ErrorKind::kUsage;  // when refused
  std::string message;                 // when refused
  Challenge session{};                 // when accepted
  std::vector<Member> members;         // when accepted, by rank
};

// A body under a proof, as both travel: magic, version, challenge of the sender, proof, length of
// the body.
struct SealedHeader {
  std::array<char, 8> magic = kHandshakeMagic;
  uint32_t version = kProtocolVersion;
  Challenge challenge{};
  Proof proof{};
  uint32_t body_bytes = 0;
};
static_assert(sizeof(SealedHeader) == 80);

// Seals a body: the proof covers who speaks ("client", "server"), both challenges and the body.
std::vector<std::byte> Seal(std::string_view secret, std::string_view speaker, const Challenge& own,
                            const Challenge& theirs, std::span<const std::byte> body);
// True when the proof holds.
bool ProofHolds(std::string_view secret, std::string_view speaker, const SealedHeader& header,
                const Challenge& theirs, std::span<const std::byte> body);
// A header's bytes, its magic, version and bound of the body checked.
StatusOr<SealedHeader> ParseSealedHeader(std::span<const std::byte> bytes);
Status CheckMagic(const std::array<char, 8>& magic, uint32_t version);

std::vector<std::byte> EncodeHello(const Hello& hello);
StatusOr<Hello> ParseHello(std::span<const std::byte> body);
std::vector<std::byte> EncodeVerdict(const Verdict& verdict);
StatusOr<Verdict> ParseVerdict(std::span<const std::byte> body);

// Ok when both agree on every setting; else a usage error with the setting's name, both values and
// the remedy.
Status CompareSettings(const std::vector<Setting>& ours, const std::string& our_name,
                       const std::vector<Setting>& theirs, const std::string& their_name);

}  // namespace lockstep
