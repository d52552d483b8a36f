// Package recipes holds what the recipes of templates add to plain packages.
// The programs here run inside sandboxes only, as their user and with no right that this user has not.
package recipes

import (
	_ "embed"
	"strings"

	"github.com/tartarus-sandbox/tartarus/internal/image/erofs"
	"github.com/tartarus-sandbox/tartarus/internal/image/rootfs"
)

// CodeInterpreterPackages are the Debian packages that the template code-interpreter has besides those of base.
var CodeInterpreterPackages = []string{
	"python3-ipykernel", "python3-jupyter-client", "python3-matplotlib", "python3-pandas", "python3-tornado",
}

// CodeInterpreterWithout is what these packages bring along through their dependencies and nobody misses: 200 MB.
var CodeInterpreterWithout = []string{"usr/include/boost", "usr/share/unicode"}

const codeInterpreterPath = "usr/lib/tartarus/code_interpreter.py"

// CodeInterpreterStart runs the server for as long as the sandbox lives; CodeInterpreterReady succeeds once its first
// kernel is up.
const (
	CodeInterpreterStart = "exec python3 /" + codeInterpreterPath
	CodeInterpreterReady = "curl -sf -o /dev/null http://127.0.0.1:49999/health"
)

// CodeInterpreter is the server, a Python program.
//
//go:embed code_interpreter.py
var CodeInterpreter string

// AddCodeInterpreter puts the server into w.
func AddCodeInterpreter(w *erofs.Writer) error {
	return w.Add(erofs.Entry{
		Path: codeInterpreterPath, Mode: erofs.TypeRegular | 0o644, ModTime: rootfs.Time, Size: int64(len(CodeInterpreter)),
	}, strings.NewReader(CodeInterpreter))
}

const mcpGatewayPath = "usr/bin/mcp-gateway"

// MCPGateway is the program that SDKs start to serve MCP servers of a sandbox under one address, in Python.
//
//go:embed mcp_gateway.py
var MCPGateway string

// AddMCPGateway puts the gateway into w.
func AddMCPGateway(w *erofs.Writer) error {
	return w.Add(erofs.Entry{
		Path: mcpGatewayPath, Mode: erofs.TypeRegular | 0o755, ModTime: rootfs.Time, Size: int64(len(MCPGateway)),
	}, strings.NewReader(MCPGateway))
}
