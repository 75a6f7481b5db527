# Sourced by the scripts beside it; the working directory is then the repository's root.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# unpack_packages DIR PACKAGE...: unpacks packages, and whatever of their dependencies this machine
# lacks, into DIR without installing them.
unpack_packages() {
    local dir=$1 new=$1.unpacking names deb
    shift
    rm -rf "$new"
    mkdir -p "$new/debs"
    as_root apt-get update -q
    names=$(apt-get install -s --reinstall --no-install-recommends "$@" | awk '/^Inst/ { print $2 }')
    (cd "$new/debs" && xargs apt-get download -q <<<"$names")
    for deb in "$new"/debs/*.deb; do
        dpkg -x "$deb" "$new/root"
    done
    rm -rf "$dir"
    mv "$new/root" "$dir"
    rm -rf "$new"
}
