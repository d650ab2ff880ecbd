#!/bin/bash
# What must hold over a real RDMA device; tests/rdma/guest.py runs it in a machine that has rxe0 on
# rdma0 (10.99.0.1) and rxe1 on rdma1 (10.99.0.2).
#
#     tests/rdma/suite.sh BUILD_FOLDER EXCHANGES [full]     full: every contract in both modes and with three ranks
build=$1 exchanges=$2
groups='*EveryGroup*rdma_?c2:*Links*rdma_rc' processes='*ADeadRank*rdma*:*EveryTransport*rdma_rc'
if [[ ${3:-} == full ]]; then groups='*rdma*' processes='*rdma*'; fi
log=/tmp/step.log failed=0

# step NAME COMMAND...: what it prints shows only if it fails. Tests that skip themselves, or that a filter does not find,
# fail here.
step() {
  local name=$1 begin=$SECONDS verdict=passed
  shift
  "$@" >$log 2>&1 || verdict=FAILED
  if grep -qE 'SKIPPED|Running 0 tests' $log; then verdict=FAILED; fi
  if [[ $verdict == FAILED ]]; then failed=1 && tail -60 $log; fi
  echo "$verdict: $name ($((SECONDS - begin)) s)"
}

# exchange MODE INTERFACE: two processes add 10 KB, every sum verified.
exchange() { "$build/tests/rdma/rdma_exchange" "$1" "$2" "$exchanges"; }

interface_decides() {
  exchange rc rdma1 && grep -q 'rdma: rxe1 to rxe1' $log
}
refuses_an_interface_without() {
  ! exchange rc lo && grep -q 'no RDMA port of this machine has an address' $log
}

# What perftest measures for one write of as many bytes, in one direction.
write_latency() {
  local test=(ib_write_lat -d rxe0 -x 1 -s 10240 -n 1000 -F)
  "${test[@]}" >/dev/null &
  local server=$!
  for _ in {1..50}; do
    "${test[@]}" 10.99.0.1 2>/dev/null | awk '/^ *10240/ { print $5 }' | grep . && break
    sleep 0.2
  done
  kill $server 2>/dev/null # it has ended by itself, unless no client came through
  wait
}

answer() {
  "$build/lockstep" run --model models/tiny --ranks 2 --collective "$@" --thinking off --max-tokens 12 \
    --temperature 0 --log-level warning "What is the capital of France?"
}
same_answer() {
  local rdma
  rdma=$(answer rdma --rdma-mode "$1" --interface rdma0) || return 1
  echo "tcp: $over_tcp, rdma: $rdma"
  [[ -n $over_tcp && $over_tcp == "$rdma" ]]
}

# A server whose second rank is killed goes on with another one.
recovers() {
  "$build/lockstep" serve --model models/tiny --ranks 2 --recover --collective rdma --interface rdma0 --grpc-port 0 --port 0 \
    --max-model-len 1024 >/tmp/ready 2>&1 &
  local server=$! code=1
  awaits 'ready' && kill -9 $(cat /proc/$server/task/$server/children) &&
    awaits 'all ranks are there again: serving' && code=0
  kill $server 2>/dev/null
  wait $server
  cat /tmp/ready
  return $code
}
awaits() {
  local _
  for _ in {1..600}; do grep -q "$1" /tmp/ready && return; sleep 0.1; done
  return 1
}
doctor_knows_the_device() {
  "$build/lockstep" doctor --ranks 2 --transports rdma,tcp --interface rdma0 && grep -q rxe0 $log &&
    grep -q 'RDMA: usable' $log
}

step "contract of links" "$build/tests/transport_link_test" --gtest_filter='*rdma*'
step "contract of groups" "$build/tests/collectives_group_test" --gtest_filter="$groups"
step "a dead, stopped or aborting rank is named" \
  "$build/tests/collectives_process_test" --gtest_filter="$processes"
over_tcp=$(answer tcp 2>/dev/null)
for mode in rc uc; do
  step "$exchanges exchanges of 10 KB, $mode" exchange $mode rdma0
  grep '^exchange' $log
  step "the same answer as over tcp, $mode" same_answer $mode
done
echo "ib_write_lat of 10 KB in the same machine, one way: $(write_latency) us"
if [[ ${3:-} == full ]]; then
  step "a lost rank returns" recovers
  step "doctor knows the device" doctor_knows_the_device
fi
exchanges=20
step "the interface decides the device" interface_decides
step "an interface without RDMA is refused" refuses_an_interface_without
exit $failed
