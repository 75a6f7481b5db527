# Prepares a machine at each boot, from the disk on which this file is: `early`, once the network is
# there, and `late`, once the user is. Above this line stands what differs from machine to machine.
seed=/run/vmlan/seed
agent=/usr/local/bin/vmlan-agent
notes=/run/vmlan/notes
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# has PROGRAM
has() {
    command -v "$1" >/dev/null 2>&1
}

# own_lines FILE SOURCE: what vmlan says in FILE is what SOURCE says, and the rest of it stays.
own_lines() {
    [ -s "$2" ] || grep -q '^#LIMA-START$' "$1" 2>/dev/null || return 0
    touch "$1"
    {
        sed '/^#LIMA-START$/,/^#LIMA-END$/d' "$1"
        echo '#LIMA-START'
        cat "$2"
        echo '#LIMA-END'
    } >"$1.vmlan" && cat "$1.vmlan" >"$1"
    rm -f "$1.vmlan"
}

# note NAME TEXT: the host is told by the agent what is not as it should be.
note() {
    mkdir -p "$notes"
    printf '%s\n' "$2" >"$notes/$1"
}

# Questions for the name server of QEMU's own network go to that of the host agent.
redirect_dns() {
    [ -n "$dns_server" ] || return 0
    rm -f "$notes/names"
    redirect_by_iptables || redirect_by_nft ||
        note names "names come from the resolver of QEMU's own network, and not from vmlan's: \
neither iptables nor nft could redirect them in the machine"
}

redirect_by_iptables() {
    has iptables || return 1
    iptables -w -t nat -N LIMADNS 2>/dev/null || iptables -w -t nat -F LIMADNS || return 1
    for chain in PREROUTING OUTPUT; do
        iptables -w -t nat -C "$chain" -j LIMADNS 2>/dev/null ||
            iptables -w -t nat -I "$chain" 1 -j LIMADNS || return 1
    done
    [ "$dns_udp" = 0 ] || iptables -w -t nat -A LIMADNS -d "$dns_server" -p udp --dport 53 \
        -j DNAT --to-destination "$dns_host:$dns_udp" || return 1
    [ "$dns_tcp" = 0 ] || iptables -w -t nat -A LIMADNS -d "$dns_server" -p tcp --dport 53 \
        -j DNAT --to-destination "$dns_host:$dns_tcp"
}

# A table of its own in one transaction, before those of others: -101 is just before the place where
# addresses are usually changed.
redirect_by_nft() {
    has nft || return 1
    {
        echo 'add table ip LIMADNS; delete table ip LIMADNS; add table ip LIMADNS'
        for hook in prerouting output; do
            echo "add chain ip LIMADNS $hook { type nat hook $hook priority -101; }"
            for to in "udp:$dns_udp" "tcp:$dns_tcp"; do
                [ "${to#*:}" = 0 ] || echo "add rule ip LIMADNS $hook ip daddr $dns_server" \
                    "${to%:*} dport 53 dnat to $dns_host:${to#*:}"
            done
        done
    } | nft -f -
}

start_agent() {
    [ -e "$seed/vmlan-agent" ] || return 0
    if ! cmp -s "$seed/vmlan-agent" "$agent"; then
        mkdir -p "${agent%/*}"
        # Not written in place: the old one may be running.
        cp "$seed/vmlan-agent" "$agent.new" && chmod 755 "$agent.new" && mv "$agent.new" "$agent"
    fi
    if [ -d /run/systemd/system ]; then
        # Gone with the next boot, so that nothing is left of it if there is no agent then.
        printf '%s\n' '[Unit]' 'Description=The agent of vmlan' 'StartLimitIntervalSec=0' \
            '[Service]' "ExecStart=$agent" 'Restart=always' 'RestartSec=2' \
            >/run/systemd/system/vmlan-agent.service
        systemctl start --no-block vmlan-agent.service
    elif has openrc-run && has supervise-daemon; then
        printf '%s\n' "#!$(command -v openrc-run)" 'supervisor=supervise-daemon' \
            "command=$agent" 'respawn_delay=2' 'respawn_max=0' >/etc/init.d/vmlan-agent
        chmod 755 /etc/init.d/vmlan-agent
        rc-service vmlan-agent start
    else
        (while :; do "$agent"; sleep 2; done) </dev/null >/dev/null 2>&1 &
    fi
}

# The user can log in by key with whatever sshd and shells there are.
mend_user() {
    # Where sshd does not ask PAM, it takes an account whose password is locked for locked.
    [ -e /etc/pam.d/sshd ] || [ ! -e /etc/shadow ] || sed -i "s/^$user:!:/$user:*:/" /etc/shadow
    shell=$(sed -n "s/^$user:.*://p" /etc/passwd)
    [ -x "$shell" ] || sed -i "s|^\($user:.*:\)[^:]*\$|\1/bin/sh|" /etc/passwd
}

# run_provision: one after the other; one that fails stops no other.
run_provision() {
    failed=0
    for script in "$seed"/provision-*; do
        case $script in
            *-system) "$script" ;;
            # Other users cannot read the disk.
            *-user) su -s /bin/sh - "$user" -c '
                copy=$(mktemp "$HOME/.vmlan-provision.XXXXXX") && cat >"$copy" && chmod 700 "$copy" &&
                    "$copy" </dev/null
                status=$?
                rm -f "$copy"
                exit "$status"' <"$script" ;;
            *) continue ;;
        esac || {
            text="${script##*/} has failed with status $?"
            echo "vmlan: $text" >&2
            note "${script##*/}" "$text"
            failed=1
        }
    done
    return "$failed"
}

# A disk is as large as it was asked to be; the image enlarges what is on it, if it can.
check_disk() {
    all=$(cat /sys/class/block/vda/size 2>/dev/null) || return 0
    used=0
    for partition in /sys/class/block/vda/vda*; do
        [ -e "$partition/start" ] || continue
        end=$(($(cat "$partition/start") + $(cat "$partition/size")))
        [ "$end" -le "$used" ] || used=$end
    done
    # In sectors, of which 2048 are a MiB. What is not worth a word is what was rounded.
    [ "$used" = 0 ] || [ $((all - used)) -lt 131072 ] ||
        note disk "only $((used / 2048)) of the disk's $((all / 2048)) MiB are in use: \
nothing in the machine has enlarged the last partition; growpart (of cloud-guest-utils) would"
}

case $1 in
    early)
        own_lines /etc/hosts "$seed/hosts"
        own_lines /etc/environment "$seed/environment"
        redirect_dns
        start_agent
        ;;
    late)
        redirect_dns
        mend_user
        check_disk
        run_provision
        ;;
esac
