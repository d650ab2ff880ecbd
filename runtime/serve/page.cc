#include "runtime/serve/page.h"

#include <openssl/evp.h>
#include <openssl/sha.h>

#include <array>

#include "runtime/base/check.h"

namespace lockstep {
namespace {

std::string Base64(const std::array<unsigned char, SHA256_DIGEST_LENGTH>& bytes) {
  std::array<unsigned char, 4 * ((SHA256_DIGEST_LENGTH + 2) / 3) + 1> text;
  const int length = EVP_EncodeBlock(text.data(), bytes.data(), static_cast<int>(bytes.size()));
  return std::string(reinterpret_cast<const char*>(text.data()), static_cast<size_t>(length));
}

// 'sha256-...' of what stands between <tag> and </tag>, of which there is one each.
std::string SourceOf(std::string_view html, const std::string& tag) {
  const std::string open = "<" + tag + ">", close = "</" + tag + ">";
  const size_t begin = html.find(open) + open.size();
  const size_t end = html.find(close);
  LOCKSTEP_CHECK(begin >= open.size() && end != std::string_view::npos && begin <= end);
  const std::string_view inside = html.substr(begin, end - begin);
  std::array<unsigned char, SHA256_DIGEST_LENGTH> digest;
  SHA256(reinterpret_cast<const unsigned char*>(inside.data()), inside.size(), digest.data());
  return "'sha256-" + Base64(digest) + "'";
}

}  // namespace

std::string PagePolicy(std::string_view html) {
  return "default-src 'none'; script-src " + SourceOf(html, "script") + "; style-src " +
         SourceOf(html, "style") +
         "; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
         "frame-ancestors 'none'";
}

std::unique_ptr<HttpReply> PageReply() {
  static const std::string policy = PagePolicy(PageText());
  return HttpText(
      200, "text/html; charset=utf-8", std::string(PageText()),
      {{"Content-Security-Policy", policy}, {"Cross-Origin-Opener-Policy", "same-origin"}});
}

}  // namespace lockstep
