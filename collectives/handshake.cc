#include "collectives/handshake.h"

#include <algorithm>
#include <cstring>

#include "runtime/base/bytes.h"

namespace lockstep {
namespace {

constexpr uint32_t kMostRanks = 1024;
constexpr uint32_t kMostSettings = 256;

// Seen in a log or an error: one line, no control characters.
std::string Printable(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 32 || c == 127) c = '?';
  }
  if (text.size() > 200) text = text.substr(0, 200) + "...";
  return text;
}

std::vector<std::byte> Statement(std::string_view speaker, const Challenge& own,
                                 const Challenge& theirs, std::span<const std::byte> body) {
  ByteWriter writer;
  writer.PutString("lockstep handshake");
  writer.Put(kProtocolVersion);
  writer.PutString(speaker);
  std::vector<std::byte> statement = writer.bytes();
  statement.insert(statement.end(), own.begin(), own.end());
  statement.insert(statement.end(), theirs.begin(), theirs.end());
  statement.insert(statement.end(), body.begin(), body.end());
  return statement;
}

const Setting* Find(const std::vector<Setting>& settings, const std::string& name) {
  const auto found = std::find_if(settings.begin(), settings.end(),
                                  [&](const Setting& item) { return item.name == name; });
  return found == settings.end() ? nullptr : &*found;
}

}  // namespace

std::vector<std::byte> Seal(std::string_view secret, std::string_view speaker, const Challenge& own,
                            const Challenge& theirs, std::span<const std::byte> body) {
  SealedHeader header;
  header.challenge = own;
  header.proof = HmacSha256(secret, Statement(speaker, own, theirs, body));
  header.body_bytes = static_cast<uint32_t>(body.size());
  std::vector<std::byte> message(sizeof(header) + body.size());
  std::memcpy(message.data(), &header, sizeof(header));
  std::copy(body.begin(), body.end(), message.begin() + sizeof(header));
  return message;
}

bool ProofHolds(std::string_view secret, std::string_view speaker, const SealedHeader& header,
                const Challenge& theirs, std::span<const std::byte> body) {
  return EqualProofs(header.proof,
                     HmacSha256(secret, Statement(speaker, header.challenge, theirs, body)));
}

Status CheckMagic(const std::array<char, 8>& magic, uint32_t version) {
  if (magic != kHandshakeMagic) return UsageError("something else than lockstep answers there");
  if (version != kProtocolVersion) {
    return UsageError(
        "lockstep there speaks protocol %d and this one %d: install the same build on every node",
        version, kProtocolVersion);
  }
  return OkStatus();
}

StatusOr<SealedHeader> ParseSealedHeader(std::span<const std::byte> bytes) {
  SealedHeader header;
  if (bytes.size() < sizeof(header)) return InternalError("the handshake is cut short");
  std::memcpy(&header, bytes.data(), sizeof(header));
  LOCKSTEP_RETURN_IF_ERROR(CheckMagic(header.magic, header.version));
  if (header.body_bytes > kLargestBody) {
    return UsageError("a handshake of %d bytes is over the limit of %d", header.body_bytes,
                      kLargestBody);
  }
  return header;
}

std::vector<std::byte> EncodeHello(const Hello& hello) {
  ByteWriter writer;
  writer.Put(hello.rank);
  writer.Put(hello.size);
  writer.Put(hello.pid);
  writer.PutString(hello.host);
  writer.PutString(hello.machine);
  writer.Put(static_cast<uint32_t>(hello.settings.size()));
  for (const Setting& setting : hello.settings) {
    writer.PutString(setting.name);
    writer.PutString(setting.value);
    writer.PutString(setting.remedy);
  }
  return writer.bytes();
}

StatusOr<Hello> ParseHello(std::span<const std::byte> body) {
  ByteReader reader(body);
  Hello hello;
  hello.rank = reader.Get<uint32_t>();
  hello.size = reader.Get<uint32_t>();
  hello.pid = reader.Get<uint32_t>();
  hello.host = Printable(reader.GetString());
  hello.machine = reader.GetString();
  const uint32_t count = reader.Get<uint32_t>();
  if (count > kMostSettings) return InternalError("a handshake with %d settings", count);
  for (uint32_t i = 0; i < count && reader.ok(); ++i) {
    Setting setting;
    setting.name = Printable(reader.GetString());
    setting.value = reader.GetString();
    setting.remedy = Printable(reader.GetString());
    hello.settings.push_back(std::move(setting));
  }
  LOCKSTEP_RETURN_IF_ERROR(reader.Finish("handshake"));
  return hello;
}

std::vector<std::byte> EncodeVerdict(const Verdict& verdict) {
  ByteWriter writer;
  writer.Put(static_cast<uint8_t>(verdict.accepted));
  writer.Put(static_cast<uint8_t>(verdict.kind));
  writer.PutString(verdict.message);
  for (const std::byte value : verdict.session) writer.Put(value);
  writer.Put(static_cast<uint32_t>(verdict.members.size()));
  for (const Member& member : verdict.members) {
    writer.Put(member.rank);
    writer.Put(member.pid);
    writer.PutString(member.host);
    writer.PutString(member.machine);
    writer.PutString(member.address);
  }
  return writer.bytes();
}

StatusOr<Verdict> ParseVerdict(std::span<const std::byte> body) {
  ByteReader reader(body);
  Verdict verdict;
  verdict.accepted = reader.Get<uint8_t>() == 1;
  const uint8_t kind = reader.Get<uint8_t>();
  if (kind < 1 || kind > 6) return InternalError("an answer of unknown kind %d", kind);
  verdict.kind = static_cast<ErrorKind>(kind);
  verdict.message = reader.GetString();
  for (std::byte& value : verdict.session) value = reader.Get<std::byte>();
  const uint32_t count = reader.Get<uint32_t>();
  if (count > kMostRanks) return InternalError("an answer with %d ranks", count);
  for (uint32_t i = 0; i < count && reader.ok(); ++i) {
    Member member;
    member.rank = reader.Get<uint32_t>();
    member.pid = reader.Get<uint32_t>();
    member.host = Printable(reader.GetString());
    member.machine = reader.GetString();
    member.address = Printable(reader.GetString());
    if (member.rank != i) return InternalError("an answer with its ranks out of order");
    verdict.members.push_back(std::move(member));
  }
  LOCKSTEP_RETURN_IF_ERROR(reader.Finish("handshake answer"));
  return verdict;
}

Status CompareSettings(const std::vector<Setting>& ours, const std::string& our_name,
                       const std::vector<Setting>& theirs, const std::string& their_name) {
  const auto differ = [&](const Setting& setting, const std::string& our_value,
                          const std::string& their_value) {
    return UsageError("%s differs: %s has %s, %s has %s; %s", setting.name, our_name,
                      Printable(our_value), their_name, Printable(their_value), setting.remedy);
  };
  for (const Setting& setting : ours) {
    const Setting* other = Find(theirs, setting.name);
    if (other == nullptr) return differ(setting, setting.value, "none");
    if (setting.value != other->value) return differ(setting, setting.value, other->value);
  }
  for (const Setting& setting : theirs) {
    if (Find(ours, setting.name) == nullptr) return differ(setting, "none", setting.value);
  }
  return OkStatus();
}

}  // namespace lockstep
