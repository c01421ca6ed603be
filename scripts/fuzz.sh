#!/usr/bin/env bash
# Coverage-guided fuzzing of every entry point, or of some:  ./scripts/fuzz.sh [SECONDS [TARGET...]]   (default: 300, all)
# In: seconds for each; the seeds and the inputs that once failed. Out: exit status 0 when nothing was found; else the input
# is in fuzz/artifacts/TARGET/, and what libFuzzer says of it on standard error. The other entry points are fuzzed all the
# same. What was learnt is kept in fuzz/corpus/TARGET, for the next run, and not in the repository.
#
# The stable toolchain is enough: rustc counts the edges when it is told to (as `cargo fuzz --sanitizer none` does), and
# libFuzzer comes with the crate libfuzzer-sys, which a C++ compiler translates. Neither cargo-fuzz nor a nightly toolchain
# is needed. $FUZZ_TARGET_DIR is where it is built (fuzz/target).
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-300}
[[ $seconds =~ ^[1-9][0-9]{0,5}$ ]] || { echo "fuzz: SECONDS is a number from 1 to 999999" >&2; exit 2; }
shift || true
known=()
for file in fuzz/fuzz_targets/*.rs; do
    name=${file##*/}
    known+=("${name%.rs}")
done
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=("${known[@]}")
for target in "${targets[@]}"; do
    [ -e "fuzz/fuzz_targets/$target.rs" ] || { echo "fuzz: there is no $target; there are ${known[*]}" >&2; exit 2; }
done

./scripts/install-packages.sh
if ! command -v c++ >/dev/null; then
    [ "$(id -u)" -eq 0 ] || { echo "fuzz: not root, and there is no C++ compiler (g++)" >&2; exit 1; }
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends g++ >&2
fi

host=$(rustc -vV | sed -n 's/^host: //p')
# Versions of everything as in the workspace; libFuzzer's own come on top.
cp Cargo.lock fuzz/Cargo.lock
flags=(
    --cfg fuzzing
    -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
    # Two compilations of one crate would have counters of one name.
    -Ccodegen-units=1
)
# With --target, build scripts and macros are not counted.
RUSTFLAGS=${flags[*]} cargo build --manifest-path fuzz/Cargo.toml --target "$host" \
    --target-dir "${FUZZ_TARGET_DIR:-fuzz/target}" --bins
built=${FUZZ_TARGET_DIR:-fuzz/target}/$host/debug

found=()
for target in "${targets[@]}"; do
    mkdir -p "fuzz/corpus/$target" "fuzz/artifacts/$target"
    # `tar` and `layer` read the same inputs.
    kept=${target/layer/tar}
    given=()
    for dir in "fuzz/seeds/$kept" "fuzz/found/$kept"; do
        [ ! -d "$dir" ] || given+=("$dir")
    done
    echo "== $target, $seconds s"
    nice "$built/$target" "fuzz/corpus/$target" "${given[@]}" "-artifact_prefix=fuzz/artifacts/$target/" \
        "-max_total_time=$seconds" -max_len=65536 -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 ||
        found+=("$target")
done
if [ ${#found[@]} -gt 0 ]; then
    echo "fuzz: something is wrong with ${found[*]}: see fuzz/artifacts" >&2
    exit 1
fi
echo "fuzz: nothing found"
