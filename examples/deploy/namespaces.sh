#!/bin/sh
# A server and three hospitals on one Linux machine, each with a network, an address and a loopback of its own:
# TLS, a key for each node, and of the SuperLink nothing but the nodes' interface to be reached from outside.
#   sudo examples/deploy/namespaces.sh FOLDER [PLAN.toml]     FOLDER is new; PLAN's first three clients are rehearsed
# Needs ip (iproute2), nginx, openssl, ssh-keygen, and fedpeft[flower] on the PATH. Ends what it began.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
root=$(cd "$1" && pwd)
plan=${2:-$here/rehearsal.toml}
net=10.77.0
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
export FLWR_SUPEREXEC_TASK_POLL_INTERVAL=0.1

in_ns() { where=$1; shift; FLWR_HOME="$root/$where" ip netns exec "fedpeft-$where" "$@"; }
begin() { name=$1; shift; in_ns "$@" > "$root/$name.log" 2>&1 & pids="$pids $!"; }
end() {
    for ns in server a b c; do
        for pid in $(ip netns pids "fedpeft-$ns" 2>/dev/null); do kill -9 "$pid" 2>/dev/null || true; done
        ip netns delete "fedpeft-$ns" 2>/dev/null || true
        ip link delete "fp-$ns" 2>/dev/null || true
    done
    ip link delete fedpeft-br 2>/dev/null || true
}
wait_for() { for _ in $(seq 2000); do grep -q "$1" "$2" 2>/dev/null && return; sleep 0.2; done; echo "no '$1' in $2" >&2; exit 1; }
pids=""
trap end EXIT INT TERM

ip link add fedpeft-br type bridge
ip link set fedpeft-br up
host=1
for ns in server a b c; do
    mkdir -p "$root/$ns"
    ip netns add "fedpeft-$ns"
    ip link add "fp-$ns" type veth peer name eth0 netns "fedpeft-$ns"
    ip link set "fp-$ns" master fedpeft-br up
    ip -n "fedpeft-$ns" address add "$net.$host/24" dev eth0
    ip -n "fedpeft-$ns" link set eth0 up
    ip -n "fedpeft-$ns" link set lo up
    host=$((host + 1))
done

# the server: the SuperLink on its loopback, nginx in front of it on its address
"$here/certificates.sh" "$root/keys" "IP:$net.1,IP:127.0.0.1,DNS:localhost"
sed "s|@ADDRESS@|$net.1|; s|@KEYS@|$root/keys|; s|@RUN@|$root/server|" "$here/nginx.conf" > "$root/nginx.conf"
begin superlink server flower-superlink --host 127.0.0.1 --port 9443 --enable-supernode-auth --database "$root/state.db" \
    --ssl-ca-certfile "$root/keys/ca.crt" --ssl-certfile "$root/keys/server.crt" --ssl-keyfile "$root/keys/server.key"
begin nginx server nginx -c "$root/nginx.conf"
printf '[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:9443"\nroot-certificates = "%s"\n' \
    "$root/keys/ca.crt" > "$root/server/config.toml"
wait_for "startup complete" "$root/superlink.log"

# a stranger who has the public certificate: neither registering a key nor submitting a run gets through
printf '[superlink]\ndefault = "there"\n[superlink.there]\naddress = "%s:8443"\nroot-certificates = "%s"\n' \
    "$net.1" "$root/keys/ca.crt" > "$root/c/config.toml"
ssh-keygen -q -t ecdsa -b 384 -N "" -f "$root/c/stranger"
if in_ns c flwr supernode register "$root/c/stranger.pub" there; then echo "a stranger was registered" >&2; exit 1; fi
in_ns c fedpeft app "$plan" -o "$root/c/app" > /dev/null
if told=$(in_ns c flwr run "$root/c/app" there 2>&1); then echo "a stranger has submitted a run" >&2; exit 1; fi
case $told in *403*) ;; *) echo "a stranger's run was turned away by something else: $told" >&2; exit 1 ;; esac
if in_ns c flwr list there; then echo "a stranger sees the runs" >&2; exit 1; fi
if in_ns c curl -s -m 5 --cacert "$root/keys/ca.crt" "https://$net.1:9443/" ; then echo "the inner port is open" >&2; exit 1; fi

# the hospitals: a worker and a SuperNode each; the public key is registered at the server
number=0
for ns in a b c; do
    ssh-keygen -q -t ecdsa -b 384 -N "" -f "$root/$ns/key"
    in_ns server flwr supernode register "$root/$ns/key.pub" here --name "$ns"
    begin "worker-$ns" "$ns" fedpeft node "$plan" --client $number --yes --out "$root/$ns/worker"
    begin "supernode-$ns" "$ns" fedpeft supernode --node "$root/$ns/worker" -- --superlink "$net.1:8443" \
        --root-certificates "$root/keys/ca.crt" --auth-supernode-private-key "$root/$ns/key" --port 9100
    number=$((number + 1))
done
for ns in a b c; do
    wait_for "start the SuperNode" "$root/worker-$ns.log"
    in_ns "$ns" fedpeft doctor --superlink "$net.1:8443" --root-certificates "$root/keys/ca.crt" \
        --key "$root/$ns/key" --node "$root/$ns/worker"
done

in_ns server fedpeft run "$plan" --engine flower --federation here --out "$root/run"
