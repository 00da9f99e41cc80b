#!/bin/sh
# Takes natbridge off this host: networks, rules, programs, settings, state, and the command.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
"$root/bin/natbridge" uninstall "$@"
link=/usr/local/bin/natbridge
if [ "$(readlink "$link" 2>/dev/null)" = "$root/bin/natbridge" ]; then
	rm -f "$link"
	echo "Removed $link. The Debian packages stay: other software may use them."
fi
