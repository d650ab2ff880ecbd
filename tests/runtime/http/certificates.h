// Certificates that sign themselves, and a client that speaks TLS, byte for byte.
#pragma once

#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <poll.h>

#include <csignal>
#include <memory>
#include <string>
#include <string_view>

#include "runtime/base/check.h"
#include "tests/runtime/http/client.h"

namespace lockstep::testing {

struct Pem {
  std::string certificate;
  std::string key;
};

inline std::string TakeText(BIO* bio) {
  char* bytes = nullptr;
  const auto length = static_cast<size_t>(BIO_get_mem_data(bio, &bytes));
  std::string text(bytes, length);
  BIO_free(bio);
  return text;
}

// For "localhost", valid from so many seconds ago for so many seconds from now.
inline Pem MakeCertificate(int64_t serial, int64_t from_s = -60, int64_t until_s = 3600) {
  EVP_PKEY* key = EVP_EC_gen("P-256");
  X509* certificate = X509_new();
  X509_set_version(certificate, 2);
  ASN1_INTEGER_set_int64(X509_get_serialNumber(certificate), serial);
  X509_gmtime_adj(X509_getm_notBefore(certificate), from_s);
  X509_gmtime_adj(X509_getm_notAfter(certificate), until_s);
  X509_set_pubkey(certificate, key);
  X509_NAME* name = X509_get_subject_name(certificate);
  X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>("localhost"), -1, -1, 0);
  X509_set_issuer_name(certificate, name);
  LOCKSTEP_CHECK(X509_sign(certificate, key, EVP_sha256()) > 0);
  BIO* certificate_bio = BIO_new(BIO_s_mem());
  BIO* key_bio = BIO_new(BIO_s_mem());
  LOCKSTEP_CHECK(PEM_write_bio_X509(certificate_bio, certificate) == 1);
  LOCKSTEP_CHECK(PEM_write_bio_PrivateKey(key_bio, key, nullptr, nullptr, 0, nullptr, nullptr) ==
                 1);
  X509_free(certificate);
  EVP_PKEY_free(key);
  return {TakeText(certificate_bio), TakeText(key_bio)};
}

// Takes any certificate.
class TlsClient {
 public:
  explicit TlsClient(int port, int newest = TLS1_3_VERSION)
      : raw_(port), context_(SSL_CTX_new(TLS_client_method())), ssl_(nullptr) {
    std::signal(SIGPIPE, SIG_IGN);  // OpenSSL writes to servers that have closed
    SSL_CTX_set_min_proto_version(context_, TLS1_VERSION);
    SSL_CTX_set_max_proto_version(context_, newest);
    SSL_CTX_set_security_level(context_, 0);  // which forbids the old versions by itself
    ssl_ = SSL_new(context_);
    SSL_set_fd(ssl_, raw_.fd());
    shaken_ = SSL_connect(ssl_) == 1;
  }
  ~TlsClient() {
    SSL_free(ssl_);
    SSL_CTX_free(context_);
  }
  TlsClient(const TlsClient&) = delete;
  TlsClient& operator=(const TlsClient&) = delete;

  bool shaken() const { return shaken_; }
  // Of the server's certificate; -1 if it showed none.
  int64_t serial() const {
    X509* certificate = SSL_get1_peer_certificate(ssl_);
    if (certificate == nullptr) return -1;
    int64_t serial = 0;
    ASN1_INTEGER_get_int64(&serial, X509_get0_serialNumber(certificate));
    X509_free(certificate);
    return serial;
  }
  void Send(std::string_view bytes) {
    while (!bytes.empty()) {
      const int sent = SSL_write(ssl_, bytes.data(), static_cast<int>(bytes.size()));
      if (sent <= 0) return;
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
  }
  std::string ReadUntil(std::string_view end, int timeout_ms = 20'000) {
    std::string got;
    char part[4096];
    while (end.empty() || got.find(end) == std::string::npos) {
      pollfd entry{raw_.fd(), POLLIN, 0};
      if (SSL_pending(ssl_) == 0 && poll(&entry, 1, timeout_ms) <= 0) break;
      const int bytes = SSL_read(ssl_, part, sizeof part);
      if (bytes <= 0) {
        told_end_ = SSL_get_error(ssl_, bytes) == SSL_ERROR_ZERO_RETURN;
        break;
      }
      got.append(part, static_cast<size_t>(bytes));
    }
    return got;
  }
  std::string ReadToEnd() { return ReadUntil(""); }
  // The server said by TLS that nothing more comes: nobody cut the answer short.
  bool told_end() const { return told_end_; }
  // Says that nothing more comes from here.
  void Shutdown() { SSL_shutdown(ssl_); }
  RawClient& raw() { return raw_; }

 private:
  RawClient raw_;
  SSL_CTX* context_;
  SSL* ssl_;
  bool shaken_ = false;
  bool told_end_ = false;
};

}  // namespace lockstep::testing
