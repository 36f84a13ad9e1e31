# shellcheck shell=bash
# Shared by the commands of scripts/: sourced, never run.
# The sourcing script sets ROOT (the repository) first.

: "${ROOT:?the sourcing script sets ROOT}"

# note TEXT...: one line for the person watching; die TEXT...: the same, and the end.
note() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
    note "$*"
    exit 1
}

# usage FILE: the header comment of FILE, which is its help text.
usage() { awk 'NR == 1 { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "$1"; }

is_root() { [ "$(id -u)" -eq 0 ]; }

# rustup puts cargo in ~/.cargo/bin, which a non-login shell or a CI job often lacks on its PATH.
find_cargo() {
    command -v cargo >/dev/null && return 0
    local home
    home=${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}
    [ -x "${CARGO_HOME:-$home/.cargo}/bin/cargo" ] || return 1
    PATH="${CARGO_HOME:-$home/.cargo}/bin:$PATH"
    export PATH
}

# release_binary: sets LATCHFS to an absolute path, building first where that is possible (a build
# of what is built already takes no time, and a stale binary would prove nothing).
# A LATCHFS that the caller has set is taken as it is. release_binary FEATURE: with a feature of Cargo.toml, in
# a directory of its own.
release_binary() {
    local feature=${1:-} options=()
    if [ -n "${LATCHFS:-}" ]; then
        [ -x "$LATCHFS" ] || die "LATCHFS=$LATCHFS is not an executable file"
        LATCHFS=$(realpath -- "$LATCHFS")
        return
    fi
    local target=${CARGO_TARGET_DIR:-$ROOT/target}
    if [ -n "$feature" ]; then
        target+=/$feature
        options=(--features "$feature" --target-dir "$target")
    fi
    if ! find_cargo; then
        [ -x "$target/release/latchfs" ] || die "cargo is missing: install Rust (https://rustup.rs), then run this again"
    elif [ -x "$target/release/latchfs" ] && [ ! -w "$target/release" ]; then
        : # another user's build, good enough to run
    else
        (cd "$ROOT" && cargo build --release --bin latchfs "${options[@]}" >&2) ||
            die "cargo build --release failed"
    fi
    # A relative CARGO_TARGET_DIR is relative to where cargo ran.
    LATCHFS=$(cd "$ROOT" && realpath -- "$target/release/latchfs")
}

# missing_packages NAME...: those of them that dpkg does not call installed, on one line.
missing_packages() {
    local package status missing=()
    for package in "$@"; do
        status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
        [ "$status" = installed ] || missing+=("$package")
    done
    printf '%s' "${missing[*]-}"
}

# install_packages NAME...: by apt-get as root, else through sudo, else says what to run.
install_packages() {
    local sudo=()
    command -v apt-get >/dev/null || die "missing: $*. This is no Debian (no apt-get): install them by your system's own means"
    if ! is_root; then
        command -v sudo >/dev/null || die "missing: $*. Run as root: apt-get update && apt-get install $*"
        sudo=(sudo)
    fi
    note "installing $*"
    "${sudo[@]}" apt-get update >&2 || die "apt-get update failed"
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >&2 ||
        die "apt-get install $* failed"
}

# check_dev_fuse: a line that says what to do where /dev/fuse cannot be used.
check_dev_fuse() {
    if [ ! -e /dev/fuse ] && is_root; then modprobe fuse 2>/dev/null || true; fi
    [ -c /dev/fuse ] || die "/dev/fuse is missing: load the kernel module (modprobe fuse, as root); in a container, start it with --device /dev/fuse --cap-add SYS_ADMIN"
    is_root && return
    [ -r /dev/fuse ] && [ -w /dev/fuse ] && return
    die "/dev/fuse is closed to you: run 'chmod 666 /dev/fuse' as root (udev does this on most machines), or run this as root"
}

# make_test_user: exports LATCHFS_TEST_USER, the ordinary user of the tests, made where missing; likewise a
# second one (its name with a 2), and the group latchfs-share with both in it. Root only.
make_test_user() {
    LATCHFS_TEST_USER=${LATCHFS_TEST_USER:-latchfs-test}
    id -u "$LATCHFS_TEST_USER" >/dev/null 2>&1 ||
        useradd --system --create-home --shell /bin/bash "$LATCHFS_TEST_USER" ||
        die "cannot create the user $LATCHFS_TEST_USER"
    export LATCHFS_TEST_USER
    local user second=${LATCHFS_TEST_USER}2
    id -u "$second" >/dev/null 2>&1 || useradd --system --create-home --shell /bin/bash "$second" ||
        die "cannot create the user $second"
    getent group latchfs-share >/dev/null || groupadd --system latchfs-share ||
        die "cannot create the group latchfs-share"
    for user in "$LATCHFS_TEST_USER" "$second"; do
        id -nG "$user" | grep -qw latchfs-share || usermod -aG latchfs-share "$user" ||
            die "cannot add $user to the group latchfs-share"
    done
}

# mount_fusectl: /sys/fs/fuse/connections, through which a mount that hangs is ended.
mount_fusectl() {
    ! grep -q ' /sys/fs/fuse/connections ' /proc/self/mountinfo || return 0
    is_root || die "/sys/fs/fuse/connections is not mounted: run, as root, mount -t fusectl none /sys/fs/fuse/connections"
    mount -t fusectl none /sys/fs/fuse/connections || die "cannot mount fusectl"
}

# open_dev_fuse: has root give /dev/fuse to users, as Debian's udev rule does, and make /etc/fuse.conf.
open_dev_fuse() {
    is_root || return 0
    [ -e /dev/fuse ] || modprobe fuse 2>/dev/null || true
    [ ! -c /dev/fuse ] || [ "$(stat -c %a /dev/fuse)" = 666 ] || chmod 666 /dev/fuse
    [ -e /etc/fuse.conf ] || printf '# See mount.fuse3(8).\n#user_allow_other\n' >/etc/fuse.conf
}

# disk_tmp: a directory for temporary files that is not in memory, so that fsync means something.
disk_tmp() {
    local dir
    for dir in "${TMPDIR:-/tmp}" /var/tmp; do
        [ -d "$dir" ] && [ "$(stat -f -c %T "$dir")" != tmpfs ] && realpath -- "$dir" && return
    done
    realpath -- "${TMPDIR:-/tmp}"
}

# mounts_under DIR: 'major:minor fstype mountpoint' of every mount below DIR, deepest first.
# Reads mountinfo only: asking the mount itself could hang. Paths stay escaped (\040 is a space).
mounts_under() {
    local escaped
    escaped=$(printf '%s' "$1" | sed 's/\\/\\134/g; s/ /\\040/g')
    LATCHFS_UNDER="$escaped/" awk '
        index($5, ENVIRON["LATCHFS_UNDER"]) == 1 {
            for (i = 7; $i != "-"; i++) { }
            print $3, $(i + 1), $5
        }' /proc/self/mountinfo | tac
}

# clean_mounts_under DIR: takes down whatever is mounted below DIR, hung or not, and names it.
# Returns 1 where there was something.
clean_mounts_under() {
    local device type point found=0
    while read -r device type point; do
        found=1
        point=$(printf '%b' "$point")
        note "leftover mount: $point ($type)"
        case $type in
            fuse*) timeout 5 sh -c "echo 1 > /sys/fs/fuse/connections/${device#*:}/abort" 2>/dev/null || true ;;
        esac
        if is_root; then
            timeout 10 umount -l -- "$point" || note "cannot unmount $point"
        else
            timeout 10 fusermount3 -uz -- "$point" || note "cannot unmount $point"
        fi
    done < <(mounts_under "$1")
    return "$found"
}
