package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/client"
	"github.com/tartarus-sandbox/tartarus/internal/daemon"
)

// server is where the API is and how this user proves to be somebody there.
type server struct {
	url      string
	key      string
	standard bool // nobody named it: it is this machine's, if there is one
}

// Variables of a client.
const (
	envURL = "TARTARUS_URL"
	envKey = "TARTARUS_API_KEY"
)

// maxKeyFile bounds what is read as a key, which is 44 bytes.
const maxKeyFile = 4096

// named is the server that --url or its variable names.
func (e *Env) named() string {
	if e.global.url != "" {
		return e.global.url
	}
	v, _ := e.lookup(envURL)
	return v
}

// server finds out which server is meant.
func (e *Env) server(c *effective) (server, error) {
	s := server{url: e.named()}
	if s.url == "" {
		s.url, s.standard = "http://"+reachable(c.APIAddr), true
	}
	key, err := e.key(c.DataDir, s)
	s.key = key
	return s, err
}

// reachable turns an address to listen on into one to connect to.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip, err := netip.ParseAddr(host); host == "" || (err == nil && ip.IsUnspecified()) {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

// key finds the API key. The admin key of this machine's data folder is only ever shown to this machine: another
// server named by --url would learn it.
func (e *Env) key(dataDir string, s server) (string, error) {
	if e.global.keyFile != "" {
		return readKey(e.global.keyFile)
	}
	if key, ok := e.lookup(envKey); ok && key != "" {
		return strings.TrimSpace(key), nil
	}
	if !s.standard && !loopback(s.url) {
		return "", nil
	}
	key, err := readKey(filepath.Join(dataDir, daemon.AdminKeyFile))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return "", nil // the server will say what it thinks of a request without one
	}
	return key, err
}

func readKey(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("read API key: %w", err)
	}
	if info.Size() > maxKeyFile || !info.Mode().IsRegular() {
		return "", fmt.Errorf("read API key: %s does not look like a key", path)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read API key: %w", err)
	}
	key := strings.TrimSpace(string(raw))
	if key == "" || strings.ContainsAny(key, " \n\r\t") {
		return "", fmt.Errorf("read API key: %s does not look like a key", path)
	}
	return key, nil
}

func loopback(rawURL string) bool {
	u, err := url.Parse(rawURL)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() == "localhost" || (err == nil && ip.IsLoopback())
}

// connect makes the client that a command talks through.
func (e *Env) connect() (*client.Client, *effective, error) {
	c, err := e.configure(nil)
	if err != nil {
		return nil, nil, err
	}
	s, err := e.server(c)
	if err != nil {
		return nil, nil, err
	}
	cl, err := client.New(client.Config{URL: s.url, APIKey: s.key, UserAgent: "tartarus-cli/" + e.Version})
	return cl, c, err
}

// withClient gives f a client for as long as it runs.
func (e *Env) withClient(f func(*client.Client) error) error {
	cl, _, err := e.connect()
	if err != nil {
		return err
	}
	defer cl.Close()
	return f(cl)
}

// advise adds the next step to errors that have one everywhere.
func advise(err error) error {
	switch {
	case tartarus.Is(err, tartarus.Unavailable) && unreachable(err):
		return fmt.Errorf("%w; start a server here with `tartarus up`, or name one with --url", err)
	case tartarus.Is(err, tartarus.Unauthenticated):
		return fmt.Errorf("%w; set TARTARUS_API_KEY or --api-key-file, or run as the user who started the server", err)
	}
	return err
}

// unreachable tells a server that nobody answers for from one that answered that it is busy.
func unreachable(err error) bool {
	_, ok := errors.AsType[*net.OpError](err)
	return ok
}

// cleanupTime is how long something gets to be removed when the command itself is over: enough for a loaded server, short enough for a
// person who waits for the prompt.
const cleanupTime = 15 * time.Second

// afterwards runs f even though ctx has ended.
func afterwards(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	return f(ctx)
}

// completeSandboxes offers the ids of running sandboxes to the shell.
func (e *Env) completeSandboxes(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	cl, _, err := e.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
	defer cancel()
	page, _, err := cl.ListPage(ctx, client.ListOptions{})
	var out []string
	for _, sb := range page {
		out = append(out, sb.SandboxID+"\t"+sb.Alias)
	}
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
