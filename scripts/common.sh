# Sourced by the scripts beside it; the working directory is then the repository's root.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# with_dependencies PACKAGE...: these packages and whatever of their dependencies is not installed.
with_dependencies() {
    apt-get install -s --reinstall --no-install-recommends "$@" | awk '/^Inst/ { print $2 }'
}

# unpack_packages DIR PACKAGE...: unpacks packages into DIR without installing them.
unpack_packages() {
    local dir=$1 new=$1.unpacking deb
    shift
    rm -rf "$new"
    mkdir -p "$new/debs"
    (cd "$new/debs" && apt-get download -q "$@")
    for deb in "$new"/debs/*.deb; do
        dpkg -x "$deb" "$new/root"
    done
    rm -rf "$dir"
    mv "$new/root" "$dir"
    rm -rf "$new"
}
