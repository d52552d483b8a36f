#!/bin/sh
# Builds the programs that templates carry into bin/. GOARCH chooses the processor, as for any go build.
set -eu
cd "$(dirname "$0")"
arch=$(GOOS=linux "${GO:-go}" env GOARCH)
for name in tartarus-guest tartarus-tiny; do
	entry=
	# Where tiny begins before Go does.
	if [ "$name/$arch" = tartarus-tiny/amd64 ]; then entry='-E main.entry'; fi
	# To a temporary name first: a build that fails or is stopped leaves no half program to embed.
	CGO_ENABLED=0 GOOS=linux "${GO:-go}" build -trimpath -ldflags "-s -w $entry" -o "bin/.$name.new" "../../../cmd/$name"
	sha256sum <"bin/.$name.new" >"bin/$name.sha256"
	mv "bin/.$name.new" "bin/$name"
done
