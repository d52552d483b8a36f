#!/bin/sh
# Makes the Go code below this folder from ../proto. Needs protoc; the two plugins are built
# from the versions pinned in go.mod, so that everyone gets the same output.
set -eu
cd "$(dirname "$0")"
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
go build -o "$bin" google.golang.org/protobuf/cmd/protoc-gen-go connectrpc.com/connect/cmd/protoc-gen-connect-go
module=github.com/tartarus-sandbox/tartarus/api/gen
PATH="$bin:$PATH" protoc -I ../proto \
    --go_out=. --go_opt=module=$module \
    --connect-go_out=. --connect-go_opt=module=$module \
    process/process.proto filesystem/filesystem.proto
