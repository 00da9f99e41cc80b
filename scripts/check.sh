#!/bin/sh
# Types, lint, format and generated files. Prints what is wrong, and how to mend it.
set -u
cd "$(dirname -- "$0")/.."
failed=0
attempt() {
	title=$1
	shift
	if ! output=$("$@" 2>&1); then
		printf '%s\n--- %s failed: %s\n' "$output" "$title" "$*"
		failed=1
	fi
}
attempt 'types' node_modules/.bin/tsc --noEmit -p .
attempt 'lint and format' node_modules/.bin/biome check --error-on-warnings .
attempt 'Rust format' cargo fmt --all --check
attempt 'clippy' cargo clippy --release --workspace --all-targets --locked --quiet -- -D warnings
# shellcheck disable=SC2046 # a list of files
attempt 'C format (clang-format-22 -i)' clang-format-22 --dry-run -Werror $(find bpf -name '*.[ch]')
attempt 'generated files (npm run generate, then commit)' sh scripts/drift.sh
exit $failed
