#include <arpa/inet.h>
#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>

#include "runtime/base/check.h"
#include "runtime/base/os.h"
#include "transport/rdma/verbs_device.h"
#include "transport/window.h"

namespace lockstep::rdma {
namespace {

// RDMA over Thunderbolt knows no larger one, and only there is UC needed.
constexpr uint32_t kUnreliableMtu = 1024;
// 4 us << 16 until the device repeats what was not acknowledged, at most 7 times.
constexpr uint8_t kTimeout = 16;
constexpr uint8_t kRetries = 7;
// A peer that has no buffer is asked again after 0.6 ms, three times: credits make it a bug.
constexpr uint8_t kReceiverNotReadyTimer = 12;
constexpr uint8_t kReceiverNotReadyRetries = 3;
constexpr uint8_t kHops = 64;
// How much the device may take from the request itself, instead of reading memory; the first that
// it can give.
constexpr uint32_t kInlineBytes[] = {220, 64, 0};

ibv_mtu MtuCode(uint32_t bytes) {
  uint32_t code = IBV_MTU_256;
  while (code < IBV_MTU_4096 && (128u << (code + 1)) <= bytes) ++code;
  return static_cast<ibv_mtu>(code);
}

class VerbsPair final : public DevicePair {
 public:
  VerbsPair(std::shared_ptr<Device> device, Mode mode, size_t largest_message)
      : device_(std::move(device)),
        mode_(mode),
        largest_message_(largest_message),
        registered_slots_(nullptr, verbs().dereg_mr),
        registered_view_(nullptr, verbs().dereg_mr),
        channel_(nullptr, verbs().destroy_comp_channel),
        completions_(nullptr, verbs().destroy_cq),
        pair_(nullptr, verbs().destroy_qp) {}

  Status Make(const Choice& choice) {
    LOCKSTEP_ASSIGN_OR_RETURN(view_, Window::Allocate(device_->window().size()));
    LOCKSTEP_ASSIGN_OR_RETURN(slots_, Window::Allocate(size_t{2} * kSlots * kSlotBytes));
    LOCKSTEP_ASSIGN_OR_RETURN(registered_slots_,
                              device_->Register(slots_.bytes(), IBV_ACCESS_LOCAL_WRITE));
    if (mode_ == Mode::kReliable && !view_.bytes().empty()) {
      LOCKSTEP_ASSIGN_OR_RETURN(
          registered_view_,
          device_->Register(view_.bytes(), IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE));
    }
    LOCKSTEP_RETURN_IF_ERROR(CreateQueues());
    port_ = static_cast<uint8_t>(choice.port->port);
    gid_index_ = static_cast<uint8_t>(choice.gid->index);
    LOCKSTEP_RETURN_IF_ERROR(Initialize());
    for (uint32_t slot = 0; slot < kSlots; ++slot) LOCKSTEP_RETURN_IF_ERROR(Receive(slot));
    FillTerms(choice);
    return OkStatus();
  }

  const Terms& terms() const override { return terms_; }
  Status Connect(const Terms& peer) override;

  Mode mode() const override { return mode_; }
  std::span<std::byte> send_slot(uint32_t slot) override { return Slot(slot); }
  std::span<std::byte> receive_slot(uint32_t slot) override { return Slot(kSlots + slot); }
  std::span<std::byte> view() override { return view_.bytes(); }
  size_t largest_message() const override { return largest_message_; }

  Status Send(uint32_t slot, size_t bytes) override {
    return Post(IBV_WR_SEND, {send_slot(slot).data(), bytes}, registered_slots_->lkey, 0, 0);
  }

  Status Write(size_t offset, size_t bytes, uint32_t tag) override {
    while (bytes > largest_message_) {
      LOCKSTEP_RETURN_IF_ERROR(Post(IBV_WR_RDMA_WRITE,
                                    device_->window().subspan(offset, largest_message_),
                                    device_->window_key(), peer_view_address_ + offset, 0));
      offset += largest_message_;
      bytes -= largest_message_;
    }
    return Post(IBV_WR_RDMA_WRITE_WITH_IMM, device_->window().subspan(offset, bytes),
                device_->window_key(), peer_view_address_ + offset, tag);
  }

  Status Receive(uint32_t slot) override {
    ibv_sge part{reinterpret_cast<uint64_t>(receive_slot(slot).data()), kSlotBytes,
                 registered_slots_->lkey};
    ibv_recv_wr request{};
    request.wr_id = slot;
    request.sg_list = &part;
    request.num_sge = 1;
    ibv_recv_wr* refused = nullptr;
    const int error = ibv_post_recv(pair_.get(), &request, &refused);
    return error == 0 ? OkStatus() : VerbsFailed("post a receive", device_->name(), error);
  }

  StatusOr<size_t> Poll(std::span<Completion> completions) override {
    if (!failure_.ok()) return failure_;
    ibv_wc found[16];
    const int room = static_cast<int>(std::min(completions.size(), std::size(found)));
    const int count = ibv_poll_cq(completions_.get(), room, found);
    if (count < 0) return failure_ = VerbsFailed("poll completions", device_->name(), EIO);
    for (int i = 0; i < count; ++i) {
      const ibv_wc& item = found[i];
      if (item.status != IBV_WC_SUCCESS) {
        // What was completed before counts first.
        failure_ = CompletionFailed(item.status, item.vendor_err);
        return i > 0 ? StatusOr<size_t>(static_cast<size_t>(i)) : StatusOr<size_t>(failure_);
      }
      completions[static_cast<size_t>(i)] = Translate(item);
    }
    return static_cast<size_t>(count);
  }

  int descriptor() const override { return channel_->fd; }
  void Arm() override { (void)ibv_req_notify_cq(completions_.get(), 0); }
  void Disarm() override {
    ibv_cq* queue = nullptr;
    void* context = nullptr;
    while (verbs().get_cq_event(channel_.get(), &queue, &context) == 0) {
      verbs().ack_cq_events(queue, 1);
    }
  }

 private:
  const Verbs& verbs() const { return device_->verbs(); }
  std::span<std::byte> Slot(uint32_t number) {
    return slots_.bytes().subspan(size_t{number} * kSlotBytes, kSlotBytes);
  }

  // A write that is cut into several messages takes as many requests.
  uint32_t MostRequests() const {
    const size_t messages = 1 + device_->window().size() / largest_message_;
    return static_cast<uint32_t>(2 * kSlots + kDataSlots * (messages - 1));
  }

  Status CreateQueues() {
    channel_.reset(verbs().create_comp_channel(device_->context()));
    if (channel_ == nullptr) {
      return VerbsFailed("create a completion channel", device_->name(), errno);
    }
    (void)fcntl(channel_->fd, F_SETFL, fcntl(channel_->fd, F_GETFL) | O_NONBLOCK);
    const int depth = static_cast<int>(MostRequests() + kSlots);
    completions_.reset(verbs().create_cq(device_->context(), depth, nullptr, channel_.get(), 0));
    if (completions_ == nullptr) {
      return VerbsFailed("create a completion queue", device_->name(), errno);
    }
    for (const uint32_t inline_bytes : kInlineBytes) {
      ibv_qp_init_attr wanted{};
      wanted.send_cq = wanted.recv_cq = completions_.get();
      wanted.qp_type = mode_ == Mode::kReliable ? IBV_QPT_RC : IBV_QPT_UC;
      wanted.cap.max_send_wr = MostRequests();
      wanted.cap.max_recv_wr = kSlots;
      wanted.cap.max_send_sge = wanted.cap.max_recv_sge = 1;
      wanted.cap.max_inline_data = inline_bytes;
      pair_.reset(verbs().create_qp(device_->domain(), &wanted));
      inline_bytes_ = inline_bytes;
      if (pair_ != nullptr) return OkStatus();
    }
    return VerbsFailed("create a queue pair", device_->name(), errno);
  }

  Status Modify(ibv_qp_attr attributes, int mask, const char* what) {
    const int error = verbs().modify_qp(pair_.get(), &attributes, mask);
    return error == 0 ? OkStatus() : VerbsFailed(what, device_->name(), error);
  }

  Status Initialize() {
    ibv_qp_attr attributes{};
    attributes.qp_state = IBV_QPS_INIT;
    attributes.port_num = port_;
    attributes.qp_access_flags = mode_ == Mode::kReliable ? IBV_ACCESS_REMOTE_WRITE : 0;
    return Modify(attributes, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS,
                  "initialize a queue pair");
  }

  void FillTerms(const Choice& choice) {
    terms_.mode = mode_;
    terms_.queue_pair = pair_->qp_num;
    terms_.first_packet = std::random_device()() & 0xffffff;
    terms_.gid = choice.gid->gid;
    terms_.mtu =
        mode_ == Mode::kReliable ? choice.port->mtu : std::min(choice.port->mtu, kUnreliableMtu);
    terms_.megabits = choice.port->megabits;
    terms_.slots = kSlots;
    terms_.slot_bytes = kSlotBytes;
    terms_.largest_message = largest_message_;
    terms_.window_bytes = device_->window().size();
    terms_.view_address = reinterpret_cast<uint64_t>(view_.bytes().data());
    terms_.view_key = registered_view_ == nullptr ? 0 : registered_view_->rkey;
    terms_.host = os::HostName();
    terms_.device = choice.port->device;
    terms_.interface = choice.gid->interface;
  }

  Status Post(ibv_wr_opcode opcode, std::span<const std::byte> data, uint32_t key,
              uint64_t peer_address, uint32_t tag) {
    ibv_sge part{reinterpret_cast<uint64_t>(data.data()), static_cast<uint32_t>(data.size()), key};
    ibv_send_wr request{};
    request.sg_list = &part;
    request.num_sge = data.empty() ? 0 : 1;
    request.opcode = opcode;
    // Only the last message of a write is heard of.
    request.send_flags = opcode == IBV_WR_RDMA_WRITE ? 0 : IBV_SEND_SIGNALED;
    if (data.size() <= inline_bytes_) request.send_flags |= IBV_SEND_INLINE;
    request.imm_data = htonl(tag);
    request.wr.rdma.remote_addr = peer_address;
    request.wr.rdma.rkey = peer_view_key_;
    ibv_send_wr* refused = nullptr;
    const int error = ibv_post_send(pair_.get(), &request, &refused);
    return error == 0 ? OkStatus() : VerbsFailed("post a send", device_->name(), error);
  }

  static Completion Translate(const ibv_wc& item) {
    const uint32_t slot = static_cast<uint32_t>(item.wr_id);
    if (item.opcode == IBV_WC_RECV) return {Completion::Kind::kPacket, slot, item.byte_len, 0};
    if (item.opcode == IBV_WC_RECV_RDMA_WITH_IMM) {
      return {Completion::Kind::kWritten, slot, item.byte_len, ntohl(item.imm_data)};
    }
    return {Completion::Kind::kSent, 0, 0, 0};
  }

  // In the order in which they are made, so that they end the other way round.
  const std::shared_ptr<Device> device_;
  const Mode mode_;
  size_t largest_message_;
  Window view_, slots_;  // slots: to send from, then to receive into
  Owned<ibv_mr> registered_slots_, registered_view_;
  Owned<ibv_comp_channel> channel_;
  Owned<ibv_cq> completions_;
  Owned<ibv_qp> pair_;
  uint32_t inline_bytes_ = 0;
  uint8_t port_ = 0, gid_index_ = 0;
  Terms terms_;
  uint64_t peer_view_address_ = 0;
  uint32_t peer_view_key_ = 0;
  Status failure_;
};

Status VerbsPair::Connect(const Terms& peer) {
  peer_view_address_ = peer.view_address;
  peer_view_key_ = peer.view_key;
  // Both cut writes alike.
  largest_message_ = std::min<size_t>(largest_message_, peer.largest_message);
  const bool reliable = mode_ == Mode::kReliable;
  ibv_qp_attr attributes{};
  attributes.qp_state = IBV_QPS_RTR;
  attributes.path_mtu = MtuCode(terms_.mtu);
  attributes.dest_qp_num = peer.queue_pair;
  attributes.rq_psn = peer.first_packet;
  attributes.max_dest_rd_atomic = 1;
  attributes.min_rnr_timer = kReceiverNotReadyTimer;
  attributes.ah_attr.is_global = 1;
  std::memcpy(attributes.ah_attr.grh.dgid.raw, peer.gid.data(), peer.gid.size());
  attributes.ah_attr.grh.sgid_index = gid_index_;
  attributes.ah_attr.grh.hop_limit = kHops;
  attributes.ah_attr.port_num = port_;
  int mask = IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN;
  if (reliable) mask |= IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
  LOCKSTEP_RETURN_IF_ERROR(Modify(attributes, mask, "connect a queue pair"));

  attributes = {};
  attributes.qp_state = IBV_QPS_RTS;
  attributes.sq_psn = terms_.first_packet;
  attributes.timeout = kTimeout;
  attributes.retry_cnt = kRetries;
  attributes.rnr_retry = kReceiverNotReadyRetries;
  attributes.max_rd_atomic = 1;
  mask = IBV_QP_STATE | IBV_QP_SQ_PSN;
  if (reliable) {
    mask |= IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC;
  }
  return Modify(attributes, mask, "connect a queue pair");
}

}  // namespace

StatusOr<std::unique_ptr<DevicePair>> MakeQueuePair(std::shared_ptr<Device> device,
                                                    const Choice& choice, Mode mode) {
  auto pair = std::make_unique<VerbsPair>(std::move(device), mode, choice.port->largest_message);
  LOCKSTEP_RETURN_IF_ERROR(pair->Make(choice));
  return pair;
}

}  // namespace lockstep::rdma
