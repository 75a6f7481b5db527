# Sourced by the scripts beside it; the working directory is then the repository's root.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}
PATH=$PATH:/usr/sbin:/sbin

# In the order in which a guest must load them for its network card.
BOOT_MODULES=(
    virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_mmio
    failover net_failover virtio_net
)

# How packages are looked for and fetched.
apt_options=()

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
    (cd "$new/debs" && apt-get "${apt_options[@]}" download -q "$@")
    for deb in "$new"/debs/*.deb; do
        dpkg -x "$deb" "$new/root"
    done
    rm -rf "$dir"
    mv "$new/root" "$dir"
    rm -rf "$new"
}

# use_packages_of ARCHITECTURE DIR: packages are another architecture's from now on, by lists in DIR;
# those of this machine stay as they are.
use_packages_of() {
    mkdir -p "$2"/{lists,archives}/partial
    : >"$2/status"
    apt_options=(
        -o APT::Architecture="$1" -o APT::Architectures="$1" -o Dir::State="$2"
        -o Dir::State::status="$2/status" -o Dir::Cache="$2"
    )
    apt-get "${apt_options[@]}" update -q
}

# unpack_kernel DIR PACKAGE: unpacks the kernel that a package of Debian's depends on into DIR,
# unless it is there.
unpack_kernel() {
    local kernel
    [ -d "$1/boot" ] && return
    [ "${#apt_options[@]}" != 0 ] || as_root apt-get update -q
    kernel=$(apt-cache "${apt_options[@]}" depends "$2" | awk '/Depends: linux-image/ { print $2 }')
    unpack_packages "$1" "$kernel"
}

# copy_modules KERNEL TREE MODULE...: copies modules of an unpacked kernel to lib/modules of a tree.
copy_modules() {
    local kernel=$1 tree=$2 module found
    shift 2
    mkdir -p "$tree/lib/modules"
    for module in "$@"; do
        found=$(find "$kernel/lib/modules" -name "$module.ko*" -print -quit)
        case $found in
            *.xz) xz -dc "$found" >"$tree/lib/modules/$module.ko" ;;
            *.ko) cp "$found" "$tree/lib/modules/" ;;
            *) echo "the kernel package has no module $module" >&2 && return 1 ;;
        esac
    done
}

# copy_program TREE PROGRAM...: copies programs of this machine to bin of a tree, with their libraries.
copy_program() {
    local tree=$1 program library
    shift
    mkdir -p "$tree/bin"
    for program in "$@"; do
        program=$(command -v "$program")
        cp "$program" "$tree/bin/"
        { ldd "$program" 2>/dev/null || true; } | grep -o '/[^ ]*' | grep -v ':$' |
            while read -r library; do
                mkdir -p "$tree$(dirname "$library")"
                cp -L "$library" "$tree$library"
            done || true
    done
}

# pack_initramfs TREE FILE: makes an initramfs of a tree, and removes the tree.
pack_initramfs() {
    (cd "$1" && find . | busybox cpio -o -H newc 2>/dev/null) >"$2.new"
    rm -rf "$1"
    mv "$2.new" "$2"
}
