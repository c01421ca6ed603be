#!/usr/bin/env bash
# The short crash, damage and property tests, many times over:  ./scripts/campaign.sh [COUNT]   (default 10)
# In: how often. Out: exit status 0 when every repetition passed; the first failure ends it.
# CI runs each of these once (test.sh). Kills fall where timing puts them, so repetitions differ; the properties get
# COUNT x 256 cases, the fuzz targets COUNT x 2000 inputs each, containerd's unpacker COUNT x 400 random tars, the kills in cold pulls and in conversions COUNT x 20 rounds each,
# the shim's COUNT x 10 in each of six forms (300: ./scripts/campaign.sh 30) and COUNT x 4 under real containers.
set -euo pipefail
cd "$(dirname "$0")/.."
count=${1:-10}
[[ $count =~ ^[1-9][0-9]{0,4}$ ]] || { echo "campaign: COUNT is a number from 1 to 99999" >&2; exit 2; }

./scripts/install-packages.sh
./scripts/debian-root.sh forky >/dev/null
./scripts/debian-root.sh trixie >/dev/null
./scripts/debian-root.sh bookworm >/dev/null
cargo build --workspace --bins --locked
cargo test --workspace --locked --no-run

# Always the whole workspace: a package of it alone has other features, and everything would be compiled again.
tests() { cargo test --workspace --locked --quiet "$@"; }

echo "== properties, $((count * 256)) cases each"
PROPTEST_CASES=$((count * 256)) tests --lib --test properties --test hostile

# Another seed each time; a failure prints it, and where its input is.
fuzz_seed=$((RANDOM * 32768 + RANDOM))
echo "== mutated inputs, $((count * 2000)) for each entry point, seed $fuzz_seed"
HEADSTART_FUZZ_SEED=$fuzz_seed HEADSTART_FUZZ_ROUNDS=$((count * 2000)) \
    tests --test fuzz --test fuzz_node

echo "== power cuts and failing operations, $((count * 60)) and $((count * 20)), seed $fuzz_seed"
HEADSTART_CRASH_SEED=$fuzz_seed HEADSTART_CRASH_POINTS=$((count * 60)) \
    tests --lib store::crash

echo "== growth, $((count * 1000)) layers under a budget"
HEADSTART_GROWTH_LAYERS=$((count * 1000)) tests --test growth

# Real images too: each layer is compared and rebuilt. HEADSTART_IMAGES names others (directories with OCI layouts).
if [ -z "${HEADSTART_IMAGES:-}" ]; then
    home=$(./scripts/bench-images.sh python node redis nginx manyfiles)
    HEADSTART_IMAGES=$(for name in python-v1 python-v2 node-v1 node-v2 redis-v1 nginx-v1 manyfiles-v1; do printf '%s:' "$home/$name"; done)
    export HEADSTART_IMAGES
fi
echo "== random tars against containerd's unpacker, $((count * 400)), seed $fuzz_seed; hostile layers at the default budget"
HEADSTART_UNPACK_SEED=$fuzz_seed HEADSTART_UNPACK_ROUNDS=$((count * 400)) \
    tests --test unpack
HEADSTART_HOSTILE_FULL=1 tests --test hostile
tests --test rebuild
# And as nodes show them, under both presentations.
tests --test e2e -- images

echo "== the server killed in cold pulls, in conversions and while it learns, $((count * 20)) rounds each"
HEADSTART_KILL_ROUNDS=$((count * 20)) tests --test kill --test profiles

echo "== 50 images of 10 layers come and go, $((count / 5 + 2)) rounds, under both presentations"
HEADSTART_LOOP=50x10x$((count / 5 + 2)) tests --test contract many

echo "== the shim killed under readers, $((count * 10)) times in each form, and under real containers"
# Nothing else runs: no reader may be stuck for longer than 2 s.
export HEADSTART_SURVIVAL_STRICT=1
HEADSTART_SURVIVAL_ROUNDS=$((count * 10)) tests --test survival -- campaign --nocapture --test-threads=1
HEADSTART_SURVIVAL_ROUNDS=$((count * 4)) tests --test e2e -- survival --nocapture

for ((i = 1; i <= count; i++)); do
    echo "== repetition $i of $count"
    # Packs cut and damaged anywhere; the server killed while it converts; the index deleted.
    tests --test store --test lazy_api --test blobs
    # The shim killed with its mount in use; servers that lie, hang and fail.
    tests --test lazy -- restart faults
    # The real binaries and the real image: three kills in one ingest, every byte compared.
    tests --test e2e -- crash
    # containerd's contract, 1.6 and 2.1.
    tests --test contract -- cri ctr users
    # Real clients, and upstreams that misbehave: the order of things differs each time.
    tests --test clients
done
echo "campaign: $count repetitions passed"
