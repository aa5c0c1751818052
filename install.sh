#!/bin/sh
# Installs Shimmy for the user who runs this script: one file, without root.
#
#   sh install.sh                    the newest release
#   sh install.sh --version 0.1.0    this release
#   sh install.sh --uninstall        removes what this script installed
#
# SHIMMY_INSTALL_DIR   the folder to install to (default: ~/.local/bin)
# SHIMMY_BASE_URL      a folder on a web server that holds a release's files and their SHA256SUMS
#                      (default: the release page of the project below)
#
# Needs curl or wget, and sha256sum, shasum or openssl. Runs in any POSIX shell: dash, busybox ash, bash.
set -eu

PROJECT=OWNER/shimmy # owner and name on GitHub; who publishes Shimmy writes the owner here

say() {
    printf '%s\n' "$*"
}

fail() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}

has() {
    command -v "$1" >/dev/null 2>&1
}

# The name of this machine's file in a release.
release_file() {
    case $(uname -s) in
        Linux) ;;
        Darwin) fail "there is no file for macOS: run Shimmy in a Linux container or virtual machine" ;;
        CYGWIN* | MINGW* | MSYS* | Windows*) fail "there is no file for Windows: run this script in WSL" ;;
        *) fail "there is no file for $(uname -s): Shimmy runs on Linux" ;;
    esac
    case $(uname -m) in
        x86_64 | amd64) say shimmy-linux-x86_64 ;;
        aarch64 | arm64) say shimmy-linux-aarch64 ;;
        armv*) fail "there is no file for a 32-bit system ($(uname -m)): install a 64-bit one on this machine" ;;
        *) fail "there is no file for this processor ($(uname -m)): Shimmy runs on x86_64 and aarch64" ;;
    esac
}

# base_url VERSION: the folder that has the files of a release; without VERSION, of the newest.
base_url() {
    if [ -n "${SHIMMY_BASE_URL:-}" ]; then
        say "${SHIMMY_BASE_URL%/}"
        return
    fi
    case $PROJECT in
        OWNER/*) fail "this copy of the script does not say where Shimmy is published: set SHIMMY_BASE_URL" ;;
    esac
    if [ -n "$1" ]; then
        say "https://github.com/$PROJECT/releases/download/v$1"
    else
        say "https://github.com/$PROJECT/releases/latest/download"
    fi
}

# download URL FILE
download() {
    if has curl; then
        curl --fail --silent --show-error --location --connect-timeout 30 --output "$2" "$1" && return
    else
        wget -q -O "$2" "$1" && return # the options that busybox's wget knows, too
    fi
    fail "cannot download $1; nothing was changed"
}

# sha256 FILE
sha256() {
    if has sha256sum; then
        sha256sum <"$1"
    elif has shasum; then
        shasum -a 256 <"$1"
    else
        openssl dgst -sha256 -r <"$1"
    fi | cut -d ' ' -f 1
}

# Whether the program that is there now came from this script: the receipt has its sum.
is_ours() {
    [ -f "$receipt" ] && [ -f "$program" ] && grep -q -x -F "$(sha256 "$program")" "$receipt"
}

# install VERSION
install() {
    file=$(release_file)
    url=$(base_url "$1")
    has sha256sum || has shasum || has openssl || fail "needs sha256sum, shasum or openssl"
    has curl || has wget || fail "needs curl or wget"
    mkdir -p "$folder" 2>/dev/null || fail "cannot make the folder $folder: set SHIMMY_INSTALL_DIR to another one"
    if [ -e "$program" ] && ! is_ours; then
        fail "$program is there, and was not installed by this script: remove it, or set SHIMMY_INSTALL_DIR"
    fi
    work=$(mktemp -d "$folder/.shimmy-install.XXXXXX" 2>/dev/null) ||
        fail "cannot write to $folder: set SHIMMY_INSTALL_DIR to another folder"
    trap 'rm -rf "$work"' EXIT
    trap 'exit 1' HUP INT TERM

    say "downloading $url/$file"
    download "$url/SHA256SUMS" "$work/SHA256SUMS"
    expected=$(sed -n "s/^\([0-9a-f]\{64\}\)  *[*]\{0,1\}$file\$/\1/p" "$work/SHA256SUMS")
    [ -n "$expected" ] || fail "$url/SHA256SUMS does not name $file; nothing was changed"
    download "$url/$file" "$work/shimmy"
    found=$(sha256 "$work/shimmy")
    [ "$found" = "$expected" ] ||
        fail "$url/$file is damaged: its sha256 is $found, not $expected; nothing was changed"

    chmod 755 "$work/shimmy"
    version=$("$work/shimmy" version) || fail "$file does not run on this machine; nothing was changed"
    [ -z "$1" ] || [ "$version" = "shimmy $1" ] ||
        fail "$url has $version, not shimmy $1; nothing was changed"
    # The receipt names the old and the new file until the new one is in its place: it is true at any moment.
    say "$found" >>"$receipt"
    mv -f "$work/shimmy" "$program"
    say "$found" >"$receipt"
    say "installed $version as $program"
    case ":${PATH:-}:" in
        *":$folder:"*) ;;
        *) say "$folder is not on your PATH; add it with: export PATH=\"$folder:\$PATH\"" ;;
    esac
}

uninstall() {
    if [ ! -e "$program" ]; then
        rm -f "$receipt"
        fail "there is no $program"
    fi
    is_ours || fail "$program was not installed by this script, or was changed since: remove it yourself"
    rm -f "$program" "$receipt"
    say "removed $program"
    say "What stays: your models, and the cache folder (by default ${XDG_CACHE_HOME:-${HOME:-~}/.cache}/shimmy)."
}

usage() {
    say "usage: sh install.sh [--version VERSION | --uninstall]"
    say "SHIMMY_INSTALL_DIR names another folder than ~/.local/bin, SHIMMY_BASE_URL another source."
}

action=install
wanted=
while [ $# -gt 0 ]; do
    case $1 in
        --version)
            [ $# -gt 1 ] || fail "--version needs a version, such as 0.1.0"
            wanted=${2#v}
            shift
            ;;
        --version=*) wanted=${1#--version=} wanted=${wanted#v} ;;
        --uninstall) action=uninstall ;;
        -h | --help)
            usage
            exit
            ;;
        *) fail "unknown argument $1; see --help" ;;
    esac
    shift
done

folder=${SHIMMY_INSTALL_DIR:-${HOME:+$HOME/.local/bin}}
case $folder in
    '') fail "HOME is not set: set SHIMMY_INSTALL_DIR to the folder to install to" ;;
    /*) ;;
    *) folder=$PWD/$folder ;;
esac
program=$folder/shimmy
receipt=$folder/.shimmy-installed

if [ "$action" = uninstall ]; then
    uninstall
else
    install "$wanted"
fi
