# Prepares a machine at each boot, from the disk on which this file is: `early`, once the network is
# there, and `late`, once the user is. Above this line stands what differs from machine to machine.
seed=/run/vmlan/seed
agent=/usr/local/bin/vmlan-agent
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

# Questions for the name server of QEMU's own network go to that of the host agent.
redirect_dns() {
    [ -n "$dns_server" ] && has iptables || return 0
    iptables -w -t nat -N LIMADNS 2>/dev/null || iptables -w -t nat -F LIMADNS || return 0
    for chain in PREROUTING OUTPUT; do
        iptables -w -t nat -C "$chain" -j LIMADNS 2>/dev/null ||
            iptables -w -t nat -I "$chain" 1 -j LIMADNS
    done
    [ "$dns_udp" = 0 ] || iptables -w -t nat -A LIMADNS -d "$dns_server" -p udp --dport 53 \
        -j DNAT --to-destination "$dns_host:$dns_udp"
    [ "$dns_tcp" = 0 ] || iptables -w -t nat -A LIMADNS -d "$dns_server" -p tcp --dport 53 \
        -j DNAT --to-destination "$dns_host:$dns_tcp"
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
            echo "vmlan: ${script##*/} has failed with status $?" >&2
            failed=1
        }
    done
    return "$failed"
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
        run_provision
        ;;
esac
