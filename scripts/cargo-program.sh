#!/bin/sh
# Builds one program of the workspace and prints its path: `cargo-program.sh PACKAGE PROGRAM`. Where
# cargo puts it is the user's affair (CARGO_TARGET_DIR, build.target-dir, build.target …), so cargo is
# asked.
set -eu
cd "$(dirname -- "$0")/.."
package=${1:?usage: cargo-program.sh PACKAGE PROGRAM}
program=${2:?usage: cargo-program.sh PACKAGE PROGRAM}
messages=$(cargo build --release --locked --quiet -p "$package" --bin "$program" \
	--message-format=json-render-diagnostics)
path=$(printf '%s\n' "$messages" | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
[ -x "$path" ] || {
	echo "cargo does not say where it put $program" >&2
	exit 1
}
printf '%s\n' "$path"
