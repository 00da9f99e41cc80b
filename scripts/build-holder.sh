#!/bin/sh
# Builds the holder and puts it next to the addon, where the daemon finds it. By rename: the program
# of a holder that runs cannot be written to.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
built=$(sh "$root/scripts/cargo-program.sh" natbridge-proxy natbridge-holder)
place=$root/crates/natbridge-node/natbridge-holder
cp "$built" "$place.$$"
mv -f "$place.$$" "$place"
