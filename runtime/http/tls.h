// The certificate with which servers speak TLS, read again when its files change.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "runtime/base/status.h"

namespace boost::asio::ssl {
class context;
}

namespace lockstep {

// Paths of PEM files; both empty: no TLS.
struct TlsFiles {
  std::string certificate;  // the server's own first, then those that signed it
  std::string key;

  bool given() const { return !certificate.empty() || !key.empty(); }
};

class TlsCertificate {
 public:
  // A UsageError says in a sentence which file of which flag (--tls-cert, --tls-key) cannot be
  // used, and what to do.
  static StatusOr<std::unique_ptr<TlsCertificate>> Load(const TlsFiles& files);
  ~TlsCertificate();

  // For a new connection. Looks at the files if the last look is a second ago; if they cannot be
  // used now, what was there before stays, which is logged once. One thread at a time.
  std::shared_ptr<boost::asio::ssl::context> Current();

 private:
  using Context = std::shared_ptr<boost::asio::ssl::context>;
  struct Text {
    std::string certificate;
    std::string key;
    bool operator==(const Text&) const = default;
  };
  explicit TlsCertificate(TlsFiles files) : files_(std::move(files)) {}
  static StatusOr<Text> Read(const TlsFiles& files);
  static StatusOr<Context> Make(const TlsFiles& files, const Text& text);

  const TlsFiles files_;
  Text text_;         // as it was last taken
  std::string told_;  // what is wrong with it since
  Context context_;
  int64_t next_look_ns_ = 0;
};

}  // namespace lockstep
