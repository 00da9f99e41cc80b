#!/bin/sh
# Sets up what is missing to run natbridge (`setup.sh run`) or to test it (`setup.sh test`), and does
# nothing the second time; `setup.sh packages` stops after the npm packages. Plain sh: at this point
# there may be no package, no Deno, no new Node.
set -eu

purpose=${1:-run}
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
stamps=$root/.setup
link=/usr/local/bin/natbridge

# What each Debian package is for is in the README's table: keep the two alike.
run_packages='gcc make clang-22 llvm-22-dev libelf-dev zlib1g-dev pkg-config nftables iproute2'
test_packages='iptables conntrack bpftool tcpdump ethtool iperf3 iputils-ping procps prometheus clang-format-22 util-linux socat python3-venv openssl curl'

started=$(date +%s)

say() {
	printf 'natbridge set-up [%3ds] %s\n' "$(($(date +%s) - started))" "$*"
}

refuse() {
	printf 'natbridge set-up: %s\n' "$@" >&2
	exit 1
}

missing_packages() {
	for package in "$@"; do
		status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
		[ "$status" = 'install ok installed' ] || printf '%s ' "$package"
	done
}

check_machine() {
	[ "$(uname -s)" = Linux ] || refuse 'natbridge needs Linux.'
	[ "$(id -u)" = 0 ] || refuse 'natbridge needs root: it makes network devices, rules and eBPF programs.' \
		"Run this again as root: sudo npm run-script, or su -."
	command -v dpkg-query >/dev/null && command -v apt-get >/dev/null || refuse \
		'This set-up installs Debian packages, and there is no apt-get here.' \
		"Install by hand: $run_packages (clang and LLVM in version 22), then Rust and Node.js, and run cargo build --release."
	if ! command -v cargo >/dev/null; then
		[ -x "${HOME:-/root}/.cargo/bin/cargo" ] || refuse \
			'There is no Rust. Install it with rustup (https://rustup.rs), version 1.85 or newer, then run this again.'
		PATH="${HOME:-/root}/.cargo/bin:$PATH"
		export PATH
	fi
}

install_packages() {
	# shellcheck disable=SC2086 # a list of words
	missing=$(missing_packages $run_packages)
	if [ "$purpose" = test ]; then
		# shellcheck disable=SC2086
		missing="$missing$(missing_packages $test_packages)"
	fi
	[ -n "$missing" ] || return 0
	say "installing Debian packages: $missing"
	apt-get update -qq >"$stamps/apt.log" 2>&1 || refuse "apt-get update failed: is there a network?" "$(tail -n 3 "$stamps/apt.log")"
	for package in $missing; do
		[ -n "$(apt-cache madison "$package" 2>/dev/null)" ] || refuse \
			"The package $package is not to be had from this machine's sources." \
			'clang-22 and llvm-22-dev are in Debian 12 with its security updates (bookworm-security).'
	done
	# shellcheck disable=SC2086
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >>"$stamps/apt.log" 2>&1 ||
		refuse "apt-get install failed; its output is in $stamps/apt.log:" "$(tail -n 3 "$stamps/apt.log")"
	# A service nobody asked for: only promtool and a server started by a test are wanted.
	if [ "${missing#*prometheus}" != "$missing" ] && [ -d /run/systemd/system ]; then
		systemctl disable --now prometheus >>"$stamps/apt.log" 2>&1 || true
	fi
}

install_npm() {
	wanted=$(sha256sum "$root/package.json" "$root/package-lock.json" | sha256sum)
	if [ ! -d "$root/node_modules" ] || [ "$(cat "$stamps/npm" 2>/dev/null)" != "$wanted" ]; then
		say 'installing npm packages, Deno among them'
		# The lock stays as it is committed: each major of npm would write another one (before 11
		# without libc, by default with the registry's addresses).
		(cd "$root" && npm install --no-save --no-audit --no-fund --loglevel=error --fetch-retries=2 --fetch-retry-mintimeout=1000 --fetch-retry-maxtimeout=5000) >"$stamps/npm.log" 2>&1 ||
			refuse "npm install failed: is there a network? Its output is in $stamps/npm.log:" "$(tail -n 5 "$stamps/npm.log")"
		sha256sum "$root/package.json" "$root/package-lock.json" | sha256sum >"$stamps/npm"
	fi
}

# The schema fuzzer, in a virtual environment of its own.
install_fuzzer() {
	wanted=$(sha256sum "$root/test/schema/requirements.txt")
	if [ ! -x "$stamps/venv/bin/st" ] || [ "$(cat "$stamps/fuzzer" 2>/dev/null)" != "$wanted" ]; then
		say 'installing schemathesis'
		(rm -rf "$stamps/venv" && python3 -m venv "$stamps/venv" &&
			"$stamps/venv/bin/pip" install --quiet --disable-pip-version-check --no-input \
				-r "$root/test/schema/requirements.txt") >"$stamps/fuzzer.log" 2>&1 ||
			refuse "installing schemathesis failed: is there a network? The output is in $stamps/fuzzer.log:" "$(tail -n 5 "$stamps/fuzzer.log")"
		printf '%s\n' "$wanted" >"$stamps/fuzzer"
	fi
}

# What the binaries are built from, as one hash. Times are of no use: git sets them anew.
sources_hash() {
	(cd "$root" && find Cargo.toml Cargo.lock .cargo crates bpf -type f \
		! -name '*.node' ! -name natbridge-holder ! -name 'index.js' ! -name 'index.d.ts' ! -path '*/tests/*' -print0 |
		sort -z | xargs -0 sha256sum | sha256sum)
}

build() {
	wanted=$(sources_hash)
	addon=$(find "$root/crates/natbridge-node" -maxdepth 1 -name '*.node' | head -n 1)
	if [ -n "$addon" ] && [ -x "$root/crates/natbridge-node/natbridge-holder" ] &&
		[ "$(cat "$stamps/build" 2>/dev/null)" = "$wanted" ]; then
		return 0
	fi
	say 'building the eBPF programs, the addon and the holder (about two minutes the first time)'
	(cd "$root" && npm run --silent build:holder && npm run --silent build:addon) \
		>"$stamps/build.log" 2>&1 ||
		refuse "the build failed; its output is in $stamps/build.log:" "$(tail -n 15 "$stamps/build.log")"
	printf '%s\n' "$wanted" >"$stamps/build"
}

offer_command() {
	[ "$(readlink "$link" 2>/dev/null)" != "$root/bin/natbridge" ] || return 0
	if [ -e "$link" ] || [ -L "$link" ]; then
		target=$(readlink -f "$link" || true)
		case $target in
		*/bin/natbridge) ;;
		'') ;;
		*)
			say "leaving $link alone: it is not natbridge's; use $root/bin/natbridge"
			return 0
			;;
		esac
	fi
	mkdir -p "$(dirname "$link")"
	ln -sfn "$root/bin/natbridge" "$link"
	say "offered the command natbridge as $link"
}

mkdir -p "$stamps"
check_machine
install_packages
install_npm
[ "$purpose" != packages ] || exit 0
[ "$purpose" != test ] || install_fuzzer
build
[ "$purpose" != run ] || offer_command
if [ "$purpose" = run ]; then
	say 'ready'
fi
