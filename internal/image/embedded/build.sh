#!/bin/sh
# Builds the programs that templates carry into bin/. GOARCH chooses the processor, as for any go build.
set -eu
cd "$(dirname "$0")"
for name in tartarus-guest tartarus-tiny; do
	# To a temporary name first: a build that fails or is stopped leaves no half program to embed.
	CGO_ENABLED=0 GOOS=linux "${GO:-go}" build -trimpath -ldflags '-s -w' -o "bin/.$name.new" "../../../cmd/$name"
	sha256sum <"bin/.$name.new" >"bin/$name.sha256"
	mv "bin/.$name.new" "bin/$name"
done
