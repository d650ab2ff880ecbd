#include "collectives/secret.h"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "collectives/bootstrap.h"
#include "runtime/base/check.h"

namespace lockstep {
namespace {

constexpr size_t kLongestSecret = 4096;

}  // namespace

Proof HmacSha256(std::string_view key, std::span<const std::byte> data) {
  Proof proof{};
  unsigned int size = proof.size();
  // OpenSSL takes a null key for "the key of before".
  const char* key_data = key.empty() ? "" : key.data();
  const unsigned char* done = HMAC(EVP_sha256(), key_data, static_cast<int>(key.size()),
                                   reinterpret_cast<const unsigned char*>(data.data()), data.size(),
                                   reinterpret_cast<unsigned char*>(proof.data()), &size);
  LOCKSTEP_CHECK(done != nullptr && size == proof.size());
  return proof;
}

bool EqualProofs(const Proof& a, const Proof& b) {
  return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

Challenge RandomChallenge() {
  Challenge challenge{};
  // Without random numbers no handshake is safe; the system always has some after boot.
  LOCKSTEP_CHECK(RAND_bytes(reinterpret_cast<unsigned char*>(challenge.data()), challenge.size()) ==
                 1);
  return challenge;
}

std::string SessionKey(std::string_view secret, const Challenge& session) {
  static constexpr std::string_view kPurpose = "lockstep session key";
  std::string text(kPurpose);
  text.append(reinterpret_cast<const char*>(session.data()), session.size());
  const Proof key = HmacSha256(secret, std::as_bytes(std::span(text)));
  return std::string(reinterpret_cast<const char*>(key.data()), key.size());
}

std::string GenerateSecret() {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const std::byte value : RandomChallenge()) {
    text += kDigits[static_cast<int>(value) >> 4];
    text += kDigits[static_cast<int>(value) & 15];
  }
  return text;
}

StatusOr<std::string> ReadSecretFile(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid())
    return UsageError("cannot read the secret file %s: %s", path, std::strerror(errno));
  struct stat facts {};
  if (fstat(fd.get(), &facts) != 0 || !S_ISREG(facts.st_mode)) {
    return UsageError("the secret file %s is not a regular file", path);
  }
  if ((facts.st_mode & 077) != 0) {
    return UsageError("the secret file %s can be read by others than its owner; run: chmod 600 %s",
                      path, path);
  }
  std::string secret(kLongestSecret + 1, '\0');
  size_t size = 0;
  while (size < secret.size()) {
    const ssize_t got = read(fd.get(), secret.data() + size, secret.size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0)
      return UsageError("cannot read the secret file %s: %s", path, std::strerror(errno));
    if (got == 0) break;
    size += static_cast<size_t>(got);
  }
  if (size > kLongestSecret)
    return UsageError("the secret file %s is over %d bytes", path, kLongestSecret);
  secret.resize(size);
  while (!secret.empty() &&
         (secret.back() == '\n' || secret.back() == '\r' || secret.back() == ' ')) {
    secret.pop_back();
  }
  if (secret.size() < 16) {
    return UsageError(
        "the secret in %s has %d characters; at least 16 are needed (openssl rand -hex 32)", path,
        secret.size());
  }
  return secret;
}

}  // namespace lockstep
