#!/usr/bin/env bash
# Tries a command in a fresh Debian 12 root, as on a machine that has nothing but the base system: makes one with
# debootstrap, copies this tree into it as git would (tracked and new files, no build), and runs the command there.
#
#     deploy/fresh_machine.sh                         deploy/quickstart.sh, then deploy/test.sh
#     deploy/fresh_machine.sh deploy/quickstart.sh    only this
#
# Needs root. The root is made at $LOCKSTEP_FRESH_ROOT (default /var/tmp/lockstep-fresh) and removed at the end unless
# LOCKSTEP_KEEP=1. The mirror is the one of this machine's apt.
set -euo pipefail
cd "$(dirname "$0")/.."
source_tree=$PWD
fresh=${LOCKSTEP_FRESH_ROOT:-/var/tmp/lockstep-fresh}

[[ $(id -u) -eq 0 ]] || { echo "fresh_machine: run this as root" >&2; exit 1; }
if ! command -v debootstrap >/dev/null; then
  apt-get update -q </dev/null
  apt-get install -y -q --no-install-recommends debootstrap </dev/null
fi

# Everything that is mounted in the root, the innermost first: what is below, and what the commands left there (the
# network namespaces of a test).
mounts() { awk -v root="$fresh/" 'index($2, root) == 1 { print $2 }' /proc/mounts | tac; }
cleanup() {
  local mount
  mount --make-rslave "$fresh/dev" 2>/dev/null || true # killed in the middle, it may still be shared
  mount --make-rslave "$fresh/sys" 2>/dev/null || true
  for mount in $(mounts); do umount "$mount" 2>/dev/null || umount -l "$mount" || true; done
  if [[ "${LOCKSTEP_KEEP:-0}" != 1 && -z "$(mounts)" ]]; then rm -rf "$fresh"; fi
}
trap cleanup EXIT

# An earlier run may have been killed.
LOCKSTEP_KEEP=0 cleanup
if [[ -e "$fresh" ]]; then echo "fresh_machine: $fresh cannot be removed; is something in it still in use?" >&2; exit 1; fi
mirror=$(apt-cache policy | sed -n 's/^ *500 \(http[^ ]*\) bookworm\/main.*/\1/p' | head -1)
debootstrap --variant=minbase --include=ca-certificates bookworm "$fresh" "${mirror:-http://deb.debian.org/debian}"

# How this machine reaches its mirror.
rm -rf "$fresh/etc/apt/sources.list" "$fresh/etc/apt/sources.list.d"
for item in /etc/apt/sources.list /etc/apt/sources.list.d /etc/apt/apt.conf /etc/apt/apt.conf.d /etc/apt/auth.conf.d \
  /etc/resolv.conf /etc/hosts /etc/ssl/certs/ca-certificates.crt; do
  [[ -e $item ]] || continue
  mkdir -p "$fresh$(dirname "$item")"
  cp -rL --remove-destination "$item" "$fresh$(dirname "$item")/"
done
# Sources may name their keys by a path.
for keys in /usr/share/keyrings /etc/apt/keyrings /etc/apt/trusted.gpg.d; do
  [[ -d $keys ]] && mkdir -p "$fresh$keys" && cp -rnL "$keys/." "$fresh$keys/"
done

mkdir -p "$fresh/root/lockstep"
git -C "$source_tree" ls-files -z --cached --others --exclude-standard |
  (cd "$source_tree" && tar --null -T - --ignore-failed-read -cf -) | tar -C "$fresh/root/lockstep" -xf -

mount -t proc proc "$fresh/proc"
for system in dev sys; do
  mount --rbind "/$system" "$fresh/$system"
  mount --make-rslave "$fresh/$system" # or unmounting here would unmount there
done

commands=("$@")
if [[ ${#commands[@]} -eq 0 ]]; then commands=(deploy/quickstart.sh deploy/test.sh); fi
for command in "${commands[@]}"; do
  echo "=== fresh machine: $command"
  start=$SECONDS
  chroot "$fresh" /usr/bin/env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 CI=true \
    ${LOCKSTEP_PROXY_ENV:-} bash -c "cd /root/lockstep && $command" </dev/null
  echo "=== fresh machine: $command took $((SECONDS - start)) s"
done
