#!/bin/sh
# Puts the Headstart shim on a node, or takes it off:  ./install.sh install|uninstall|purge [options]
#
#   --server URL   the Headstart server of a first installation; shim.toml and hosts.toml get it
#   --root DIR     another root file system than /, such as /host in a container
#   --nsenter      systemd is asked in the mount namespace of process 1 (for containers with the host's processes)
#   --no-start     the service is neither started nor restarted
#
# In: the files beside this script (scripts/package.sh makes such a bundle). Out: programs in /usr/local, configuration in
# /etc. Running it again changes what changed, and nothing else. A configuration file that somebody edited is left as it
# is, and the new one put beside it as NAME.new. A config/ca.pem in the bundle becomes /etc/headstart/ca.pem. uninstall removes what was installed and not edited; purge the state in
# /var/lib/headstart-shim too. containerd's configuration is not touched: "headstart-shim doctor" says what it needs.
set -eu

bundle=$(cd "$(dirname "$0")" && pwd)
action=${1:-}
[ $# -gt 0 ] && shift
root= server= nsenter= start=1
while [ $# -gt 0 ]; do
    case $1 in
        --root) root=${2%/}; shift ;;
        --server) server=$2; shift ;;
        --nsenter) nsenter=1 ;;
        --no-start) start= ;;
        *) echo "install.sh: unknown option $1" >&2; exit 2 ;;
    esac
    shift
done
case $server in
    '' | http://* | https://*) ;;
    *) echo "install.sh: --server is an http or https URL" >&2; exit 2 ;;
esac
# It goes into TOML.
case $server in
    *[!]A-Za-z0-9.:/_[-]*) echo "install.sh: --server has characters that no such URL has" >&2; exit 2 ;;
esac

readonly placeholder=http://headstart.internal:5080
readonly state=/var/lib/headstart-shim
# Checksums of the configuration files as they were installed: what differs now was edited.
record=$root/usr/local/share/headstart/installed
changed=

# Nothing but a shell and coreutils: images for containers often have no more.
say() { echo "install.sh: $*"; }
sum() { set -- "$(sha256sum <"$1")"; echo "${1%% *}"; }
# FILE, with the first TEXT of each line replaced.
replaced() { # FILE TEXT NEW
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in
            *"$2"*) line=${line%%"$2"*}$3${line#*"$2"} ;;
        esac
        printf '%s\n' "$line"
    done <"$1"
}
has() { # FILE TEXT
    case $(cat "$1") in
        *"$2"*) return 0 ;;
    esac
    return 1
}
recorded() {
    [ ! -f "$record" ] || while read -r known path; do
        [ "$path" != "$1" ] || echo "$known"
    done <"$record"
}
remember() { # SUM PATH
    mkdir -p "${record%/*}"
    {
        [ ! -f "$record" ] || while read -r known path; do
            [ "$path" = "$2" ] || echo "$known $path"
        done <"$record"
        echo "$1 $2"
    } >"$record.tmp"
    mv "$record.tmp" "$record"
}

# Renamed into place: a program that runs is not written to.
place() { # FROM TO MODE
    mkdir -p "${2%/*}"
    cp "$1" "$2.tmp.$$"
    chmod "$3" "$2.tmp.$$"
    mv "$2.tmp.$$" "$2"
}
program() { # FROM TO MODE
    if [ ! -f "$root$2" ] || [ "$(sum "$1")" != "$(sum "$root$2")" ]; then
        place "$1" "$root$2" "$3"
        changed=1
        say "installed $2"
    fi
}
configuration() { # FROM TO
    new=$(sum "$1")
    now=
    [ -f "$root$2" ] && now=$(sum "$root$2")
    if [ "$now" = "$new" ]; then
        remember "$new" "$2"
    elif [ -z "$now" ] || [ "$now" = "$(recorded "$2")" ]; then
        place "$1" "$root$2" 644
        remember "$new" "$2"
        changed=1
        say "installed $2"
    elif [ ! -f "$root$2.new" ] || [ "$(sum "$root$2.new")" != "$new" ]; then
        place "$1" "$root$2.new" 644
        say "$2 was edited and stays; the new one is $2.new"
    fi
}

systemd() {
    if [ -n "$nsenter" ]; then
        nsenter --target 1 --mount -- systemctl "$@"
    elif [ -z "$root" ] && [ -d /run/systemd/system ]; then
        systemctl "$@"
    fi
}

units() { (cd "$bundle/config/systemd" && ls headstart-shim*); }

do_install() {
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    program "$bundle/bin/headstart-shim" /usr/local/bin/headstart-shim 755
    for unit in $(units); do
        program "$bundle/config/systemd/$unit" "/usr/local/lib/systemd/system/$unit" 644
    done
    program "$bundle/config/modules-load.conf" /usr/local/lib/modules-load.d/headstart-shim.conf 644
    for file in shim.toml hosts.toml; do
        from=$bundle/config/$file
        [ $file = shim.toml ] || from=$bundle/config/containerd/certs.d/_default/hosts.toml
        # An installation that exists keeps its server.
        if [ -z "$server" ] && [ -f "$root/etc/headstart/server" ]; then
            server=$(cat "$root/etc/headstart/server")
        fi
        replaced "$from" "$placeholder" "${server:-$placeholder}" >"$work/$file"
    done
    # Who signs the server's certificate, before anybody is told to ask for it.
    [ ! -f "$bundle/config/ca.pem" ] || configuration "$bundle/config/ca.pem" /etc/headstart/ca.pem
    configuration "$work/shim.toml" /etc/headstart/shim.toml
    if [ -n "$server" ]; then
        echo "$server" >"$root/etc/headstart/server"
    fi
    # Without a server it would send containerd to a host that is none.
    if has "$work/hosts.toml" "$placeholder"; then
        say "no hosts.toml installed: run again with --server URL, or write one yourself"
    else
        configuration "$work/hosts.toml" /etc/containerd/certs.d/_default/hosts.toml
    fi
    systemd daemon-reload
    systemd enable headstart-shim.service
    if [ -n "$start" ] && [ -n "$changed" ]; then
        # Containers go on meanwhile.
        systemd restart headstart-shim.service
    elif [ -n "$start" ]; then
        systemd start headstart-shim.service
    fi
    [ -n "$changed" ] || say "everything is there already"
    say "next: headstart-shim doctor"
}

do_uninstall() {
    # Its mounts stay for containers that run; a node that shall be free of it has removed its images first.
    systemd disable --now headstart-shim.service || true
    for unit in $(units); do
        rm -f "$root/usr/local/lib/systemd/system/$unit"
    done
    rm -f "$root/usr/local/bin/headstart-shim" "$root/usr/local/lib/modules-load.d/headstart-shim.conf"
    systemd daemon-reload || true
    for path in /etc/headstart/shim.toml /etc/headstart/ca.pem /etc/containerd/certs.d/_default/hosts.toml; do
        [ -f "$root$path" ] || continue
        if [ "$(sum "$root$path")" = "$(recorded "$path")" ]; then
            rm -f "$root$path" "$root$path.new"
        else
            say "$path was edited and stays"
        fi
        # Only if it is empty.
        rmdir "$root${path%/*}" 2>/dev/null || true
    done
    rm -f "$root/etc/headstart/server" "$record"
    rmdir "$root/etc/headstart" "${record%/*}" 2>/dev/null || true
    say "removed; take [proxy_plugins.headstart] and snapshotter = \"headstart\" out of containerd's configuration"
}

do_purge() {
    do_uninstall
    if has /proc/self/mountinfo " $root$state/"; then
        say "$state is in use: remove the containers and images on it, or reboot, and purge again" >&2
        exit 1
    fi
    rm -rf "$root$state"
    say "removed $state"
}

case $action in
    install) do_install ;;
    uninstall) do_uninstall ;;
    purge) do_purge ;;
    *)
        while IFS= read -r line; do
            case $line in
                '#!'*) ;;
                '#'*) echo "${line#\#}" ;;
                *) break ;;
            esac
        done <"$0" >&2
        exit 2
        ;;
esac
