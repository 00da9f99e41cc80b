#!/bin/sh
# Makes the generated files anew and fails if they differ from those in the tree.
set -eu
cd "$(dirname -- "$0")/.."
before=$(mktemp -d)
trap 'rm -rf "$before"' EXIT
generated='crates/natbridge-node/index.d.ts crates/natbridge-node/index.js openapi.json'
for file in $generated; do
	mkdir -p "$before/$(dirname "$file")"
	cp "$file" "$before/$file"
done
npm run --silent generate >/dev/null
status=0
for file in $generated; do
	diff -u "$before/$file" "$file" || status=1
done
exit $status
