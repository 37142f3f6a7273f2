#!/usr/bin/env bash
# Checks the macOS build on Linux: clippy on all targets, and a link to Mach-O, for both of Apple's architectures. The
# programs cannot run here, so only a Mac can test them.
#
#   .ci/check-macos.sh            both targets
#   .ci/check-macos.sh prove      a wrong type, a wrong symbol and a lint, each of which must fail the check
#
# Needs Debian on x86_64 with rustup's toolchain, and no files of Apple's. Debian's rustc has the source of the standard
# library, which is built once for each target; rustup's rust-lld links Mach-O. The libraries are lists of symbols: for
# libSystem those shipped with zig, for the frameworks those that the crates declare. The daemon loads IOReport at run
# time, so tests/meter/apple.rs checks its symbols instead. The cache, about 0.9 GB, is in WATTSPAN_APPLE_CACHE
# (default: ~/.cache/wattspan-apple).
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
kept=${WATTSPAN_APPLE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/wattspan-apple}
sysroot=$kept/root programs=$kept/bin sdk=$kept/sdk zig=$kept/zig
targets="aarch64-apple-darwin x86_64-apple-darwin"
export MACOSX_DEPLOYMENT_TARGET=11.0
mkdir -p "$kept/debs" "$sysroot" "$programs"

say() { printf '== %s macOS: %s\n' "$(date +%T)" "$*"; }
fail() { printf 'check-macos: %s\n' "$*" >&2; exit 1; }

command -v apt-get >/dev/null || fail "needs Debian's packages (rustc-web); on a Mac, run cargo clippy and cargo build"

# Debian's rustc and clippy with the library's source: unpacked into the cache, never installed.
unpack() {
    depends() {
        apt-cache show --no-all-versions "$1" 2>/dev/null |
            awk -v re="$2" '/^Depends:/ && !done && match($0, re) { print substr($0, RSTART, RLENGTH); done = 1 }'
    }
    apt-get update -qq -o Acquire::Retries=5
    local std llvm missing
    std=$(depends libstd-rust-web-dev 'libstd-rust-web-[0-9.]+')
    llvm=$(depends "$std" 'libllvm[0-9]+')
    [ -n "$llvm" ] || fail "Debian's lists have no rustc-web"
    say "fetches rustc-web, $std, $llvm"
    (cd "$kept/debs" && rm -f ./*.deb && apt-get -qq -o APT::Sandbox::User=root -o Acquire::Retries=5 download \
        rustc-web "$std" libstd-rust-web-dev rust-web-clippy rust-web-src "$llvm")
    for deb in "$kept"/debs/*.deb; do
        case $deb in
        */rust-web-src_*)
            dpkg-deb --fsys-tarfile "$deb" |
                tar -x -C "$sysroot" --wildcards './usr/src/rustc-*/library' './usr/lib/rustlib/src*'
            ;;
        *) dpkg -x "$deb" "$sysroot" ;;
        esac
    done
    rm -f "$kept"/debs/*.deb
    local libraries=$sysroot/usr/lib/x86_64-linux-gnu
    missing=$(LD_LIBRARY_PATH=$libraries ldd "$libraries"/librustc_driver-*.so "$libraries"/libLLVM.so.* |
        awk '/not found/ { print $1 }' | sort -u)
    [ -z "$missing" ] || fail "shared libraries are missing: $missing (apt-get install libedit2 libxml2 libz3-4)"
    for program in rustc clippy-driver; do
        printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s/usr/bin/%s "$@"\n' "$libraries" "$sysroot" "$program" \
            >"$programs/$program"
        chmod +x "$programs/$program"
    done
    touch "$kept/.unpacked"
}
[ -e "$kept/.unpacked" ] || unpack

# Before RUSTUP_TOOLCHAIN is unset, which may name the only toolchain that is installed.
cargo=$(rustup which cargo 2>/dev/null || command -v cargo)
export RUSTC=$programs/rustc
unset RUSTUP_TOOLCHAIN RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER || true
version=$("$RUSTC" -V)
lld=$(dirname "$(dirname "$cargo")")/lib/rustlib/x86_64-unknown-linux-gnu/bin/rust-lld
[ -x "$lld" ] || fail "rustup's toolchain has no rust-lld at $lld"

# The standard library for a target, built once and placed where Debian's rustc looks for it.
standard_library() {
    local lib=$sysroot/usr/lib/rustlib/$1/lib seed=$kept/seed
    [ "$(cat "$lib/.done" 2>/dev/null)" != "$version" ] || return 0
    say "builds the standard library for $1, once"
    rm -rf "$seed" "$lib"
    mkdir -p "$seed/src" "$lib"
    printf '%s\n' '[package]' 'name = "seed"' 'version = "0.0.0"' 'edition = "2021"' '[workspace]' \
        '[profile.release]' 'debug = 0' 'opt-level = 1' 'incremental = false' >"$seed/Cargo.toml"
    echo '#![no_std]' >"$seed/src/lib.rs"
    (cd "$seed" && RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$seed/target \
        "$cargo" build -q --release -Zbuild-std=std,panic_abort,test --target "$1")
    cp "$seed/target/$1"/release/deps/*.rlib "$seed/target/$1"/release/deps/*.rmeta "$lib/"
    rm -f "$lib"/libseed*
    rm -rf "$seed"
    echo "$version" >"$lib/.done"
}

# A stub library: FILE INSTALL_NAME, with its symbols on standard input.
stub() {
    mkdir -p "$(dirname "$1")"
    {
        printf -- '--- !tapi-tbd\ntbd-version: 4\ntargets: [ x86_64-macos, arm64-macos ]\ninstall-name: "%s"\n' "$2"
        printf 'exports:\n  - targets: [ x86_64-macos, arm64-macos ]\n    symbols: [ '
        tr -s ' \n' '\n' | sed '/^$/d; s/^/_/' | sort -u | paste -sd, | sed 's/,/, /g' | tr '\n' ' '
        printf ']\n...\n'
    } >"$1"
}

# The names with a prefix that a crate declares.
declared() {
    find "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"$1"-[0-9]* -name '*.rs' -exec cat {} + |
        grep -oE "pub (unsafe )?(static|fn) +$2[A-Za-z0-9_]+" | awk '{ print $NF }'
}

# A C compiler for a target, for SQLite and ring: zig's, without the options that it does not support.
c_compiler() { # TARGET
    local file=$programs/cc-$1
    cat >"$file" <<CC
#!/usr/bin/env bash
words=()
while [ \$# -gt 0 ]; do
    case \$1 in
    -arch | -isysroot) shift ;;
    -mmacosx-version-min=* | --target=* | -gfull | -gdwarf-*) ;;
    *) words+=("\$1") ;;
    esac
    shift
done
unset SDKROOT
ZIG_GLOBAL_CACHE_DIR=$kept/zig-cache ZIG_LOCAL_CACHE_DIR=$kept/zig-cache \\
    exec "$zig/ziglang/zig" cc -target ${1%%-*}-macos -fno-sanitize=all "\${words[@]}"
CC
    printf '#!/bin/sh\nexec "%s" ar "$@"\n' "$zig/ziglang/zig" >"$programs/ar"
    chmod +x "$file" "$programs/ar"
    local variable=${1//-/_}
    export "CC_$variable=$file" "AR_$variable=$programs/ar"
}

stub_sdk() {
    local frameworks=$sdk/System/Library/Frameworks
    if [ ! -e "$sdk/.done" ]; then
        say "makes the stubs of the system's libraries"
        rm -rf "$sdk"
        mkdir -p "$sdk/usr/lib"
        # rust-lld does not support the newest architecture's name.
        sed 's/arm64e\.x1-/arm64-/g' "$(find "$zig" -path '*libc/darwin/libSystem.tbd')" >"$sdk/usr/lib/libSystem.tbd"
        echo '{"Version":"27.0"}' >"$sdk/SDKSettings.json"
        for library in libc libm libpthread libdl; do ln -sf libSystem.tbd "$sdk/usr/lib/$library.tbd"; done
        touch "$sdk/.done"
    fi
    stub "$sdk/usr/lib/libiconv.tbd" /usr/lib/libiconv.2.dylib <<<"iconv iconv_open iconv_close"
    declared core-foundation-sys 'k?CF' | stub "$frameworks/CoreFoundation.framework/CoreFoundation.tbd" \
        /System/Library/Frameworks/CoreFoundation.framework/Versions/A/CoreFoundation
    declared security-framework-sys 'k?(Sec|SSL|Authorization|CMS)' |
        stub "$frameworks/Security.framework/Security.tbd" /System/Library/Frameworks/Security.framework/Versions/A/Security
    declared io-kit-sys 'k?IO' | stub "$frameworks/IOKit.framework/IOKit.tbd" \
        /System/Library/Frameworks/IOKit.framework/Versions/A/IOKit
}

lint() { # TARGET
    RUSTC_WORKSPACE_WRAPPER=$programs/clippy-driver CLIPPY_ARGS=-Dwarnings__CLIPPY_HACKERY__ \
        "$cargo" check --locked --quiet --all-targets --target "$1"
}

link() { # TARGET
    "$cargo" build --locked --quiet --bins --target "$1"
    for program in wattspan wattspand; do
        local file=$CARGO_TARGET_DIR/$1/debug/$program
        # The magic number of a 64-bit Mach-O file, little-endian.
        [ "$(od -An -tx4 -N4 "$file" | tr -d ' ')" = feedfacf ] || fail "$file is no Mach-O"
    done
}

# Each change to a copy of the source must fail, for its intended reason.
prove() {
    local copy=$root/target/macos-prove target=${targets%% *}
    must_fail() { # STEP REASON FILE SED-EXPRESSION
        rm -rf "$copy" && mkdir -p "$copy"
        cp -r Cargo.toml Cargo.lock clippy.toml src crates tests benches examples launchd "$copy/"
        sed -i -e "$4" "$copy/$3"
        ! cmp -s "$3" "$copy/$3" || fail "the change for $2 changes nothing: $4"
        if (cd "$copy" && "$1" "$target") >"$copy.log" 2>&1; then fail "passes with $2 in $3"; fi
        grep -q "$2" "$copy.log" || { cat "$copy.log"; fail "fails otherwise than with $2"; }
        say "fails with $2, as it must"
    }
    must_fail lint E0308 src/sources/apple/linked_functions_ffi.rs 's/encoding: u32) -> u8 = string/encoding: u64) -> u8 = string/'
    must_fail lint ptr_arg crates/wattspan-client/src/clock/uptime_ffi.rs '$a /// A lint.\npub fn lint(list: \&Vec<u8>) -> usize {\n    list.len()\n}'
    must_fail link launch_activate_sockets src/launchd/linked_ffi.rs 's/launch_activate_socket\b/launch_activate_sockets/g'
    rm -rf "$copy" "$copy.log"
}

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}/macos
export CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_TEST_DEBUG=0 CARGO_INCREMENTAL=0 SDKROOT=$sdk
for target in $targets; do
    variable=$(tr 'a-z-' 'A-Z_' <<<"$target")
    export "CARGO_TARGET_${variable}_LINKER=$lld"
    export "CARGO_TARGET_${variable}_RUSTFLAGS=-Clinker-flavor=ld64.lld -Cstrip=none"
done
say "$version, $("$cargo" -V)"
for target in $targets; do standard_library "$target"; done
# Artifacts built with another copy of the standard library are invalid, which cargo cannot detect.
library=$(for target in $targets; do stat -c '%n %Y' "$sysroot/usr/lib/rustlib/$target/lib/.done"; done)
if [ "$(cat "$CARGO_TARGET_DIR/.library" 2>/dev/null)" != "$library" ]; then
    rm -rf "$CARGO_TARGET_DIR"
    mkdir -p "$CARGO_TARGET_DIR"
    printf '%s\n' "$library" >"$CARGO_TARGET_DIR/.library"
fi
"$cargo" fetch --locked --quiet
if [ ! -x "$zig/ziglang/zig" ]; then
    say "fetches zig"
    python3 -m pip install -q --disable-pip-version-check --no-deps --target "$zig" ziglang
fi
stub_sdk
for target in $targets; do c_compiler "$target"; done

case ${1:-all} in
all)
    for target in $targets; do
        say "lints for $target"
        lint "$target"
        say "links for $target"
        link "$target"
    done
    ;;
prove) prove ;;
*) fail "there is no $1" ;;
esac
say "done"
