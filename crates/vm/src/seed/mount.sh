umask 022
seed=/run/vmlan/seed
mkdir -p "$seed"
chmod 700 /run/vmlan
if [ ! -e "$seed/vmlan-boot" ]; then
    for device in /dev/disk/by-label/cidata /dev/vd[a-z] /dev/sr[0-9] /dev/sd[a-z]; do
        mount -t iso9660 -o ro,nosuid,nodev "$device" "$seed" 2>/dev/null || continue
        [ ! -e "$seed/vmlan-boot" ] || break
        umount "$seed"
    done
fi
sh "$seed/vmlan-boot" early
