#include "runtime/http/tls.h"

#include <openssl/bio.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <boost/asio/ssl/context.hpp>
#include <utility>

#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/log.h"

namespace lockstep {
namespace {

namespace asio = boost::asio;
namespace ssl = boost::asio::ssl;
using boost::system::error_code;

constexpr int64_t kLookNs = 1'000'000'000;
constexpr uint64_t kMostBytes = 1 << 20;

StatusOr<std::string> ReadPem(const std::string& path, const char* flag, const char* what) {
  if (path.empty())
    return UsageError("%s is missing: TLS needs both --tls-cert and --tls-key", flag);
  StatusOr<std::string> text = ReadTextFile(path, kMostBytes);
  if (text.ok()) return text;
  return UsageError("%s: %s; give the PEM file of the server's %s", flag, MessageOf(text.status()),
                    what);
}

std::string Text(const ASN1_TIME* time) {
  BIO* bio = BIO_new(BIO_s_mem());
  ASN1_TIME_print(bio, time);
  char* bytes = nullptr;
  const int64_t length = BIO_get_mem_data(bio, &bytes);
  std::string text(bytes, static_cast<size_t>(length));
  BIO_free(bio);
  return text;
}

Status CheckDates(const std::string& path, SSL_CTX* context) {
  const X509* certificate = SSL_CTX_get0_certificate(context);
  const ASN1_TIME* from = X509_get0_notBefore(certificate);
  const ASN1_TIME* until = X509_get0_notAfter(certificate);
  if (X509_cmp_current_time(until) < 0) {
    return UsageError("--tls-cert %s: the certificate expired on %s; get a new one", path,
                      Text(until));
  }
  if (X509_cmp_current_time(from) > 0) {
    return UsageError(
        "--tls-cert %s: the certificate begins on %s only; set this machine's clock, or get "
        "another one",
        path, Text(from));
  }
  return OkStatus();
}

}  // namespace

StatusOr<TlsCertificate::Text> TlsCertificate::Read(const TlsFiles& files) {
  Text text;
  LOCKSTEP_ASSIGN_OR_RETURN(text.certificate,
                            ReadPem(files.certificate, "--tls-cert", "certificate"));
  LOCKSTEP_ASSIGN_OR_RETURN(text.key, ReadPem(files.key, "--tls-key", "private key"));
  return text;
}

StatusOr<TlsCertificate::Context> TlsCertificate::Make(const TlsFiles& files, const Text& text) {
  auto context = std::make_shared<ssl::context>(ssl::context::tls_server);
  SSL_CTX* const native = context->native_handle();
  SSL_CTX_set_min_proto_version(native, TLS1_2_VERSION);
  SSL_CTX_set_options(native, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
  SSL_CTX_set_mode(native, SSL_MODE_RELEASE_BUFFERS);  // for many idle connections
  error_code error;
  context->use_certificate_chain(asio::buffer(text.certificate), error);
  if (error) {
    return UsageError(
        "--tls-cert %s holds no certificate that can be used (%s); give a PEM file, which begins "
        "with -----BEGIN CERTIFICATE-----",
        files.certificate, error.message());
  }
  if (text.key.find("ENCRYPTED") != std::string::npos) {
    return UsageError(
        "--tls-key %s is locked with a password; `openssl pkey -in FILE -out NEW` makes one "
        "without",
        files.key);
  }
  // The certificate is there: a key of another kind or another certificate is refused here.
  context->use_private_key(asio::buffer(text.key), ssl::context::pem, error);
  if (error && text.key.find("PRIVATE KEY-----") == std::string::npos) {
    return UsageError(
        "--tls-key %s holds no private key (%s); give a PEM file, which begins with -----BEGIN "
        "PRIVATE KEY-----",
        files.key, error.message());
  }
  if (error || SSL_CTX_check_private_key(native) != 1) {
    return UsageError(
        "--tls-key %s is not the key of the certificate in --tls-cert %s (%s); give two files that "
        "were made together",
        files.key, files.certificate, error ? error.message() : "they do not match");
  }
  LOCKSTEP_RETURN_IF_ERROR(CheckDates(files.certificate, native));
  return context;
}

TlsCertificate::~TlsCertificate() = default;

StatusOr<std::unique_ptr<TlsCertificate>> TlsCertificate::Load(const TlsFiles& files) {
  std::unique_ptr<TlsCertificate> certificate(new TlsCertificate(files));
  LOCKSTEP_ASSIGN_OR_RETURN(certificate->text_, Read(files));
  LOCKSTEP_ASSIGN_OR_RETURN(certificate->context_, Make(files, certificate->text_));
  certificate->next_look_ns_ = NowNs() + kLookNs;
  return StatusOr<std::unique_ptr<TlsCertificate>>(std::move(certificate));
}

std::shared_ptr<ssl::context> TlsCertificate::Current() {
  const int64_t now_ns = NowNs();
  if (now_ns < next_look_ns_) return context_;
  next_look_ns_ = now_ns + kLookNs;
  StatusOr<Text> text = Read(files_);
  if (text.ok() && *text == text_) {
    told_.clear();
    return context_;
  }
  const StatusOr<Context> context =
      text.ok() ? Make(files_, *text) : StatusOr<Context>(text.status());
  if (!context.ok()) {
    // Told once, not every second.
    if (std::string what = MessageOf(context.status()); what != told_) {
      log::Warning("the certificate stays as it is: %s", what);
      told_ = std::move(what);
    }
    return context_;
  }
  told_.clear();
  log::Info("%s: another certificate", files_.certificate);
  text_ = *std::move(text);
  context_ = *context;
  return context_;
}

}  // namespace lockstep
