package cli

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tartarus-sandbox/tartarus/internal/daemon"
)

func upCommand(e *Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run the server: API, edge and node agent in one process",
		Long: `Run the server: API, edge and node agent in one process, until Ctrl-C or SIGTERM.

Everything is kept in the data folder. Sandboxes live on when the server stops, and the next start takes them over again; with --pause-on-exit they
are paused first, and resumed when somebody wants them.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := e.configure(cmd.Flags())
			if err != nil {
				return err
			}
			return e.up(cmd.Context(), c)
		},
	}
	addSettings(cmd.Flags())
	return cmd
}

func (e *Env) up(ctx context.Context, c *effective) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("running sandboxes needs root (network namespaces, cgroups, nftables): use sudo, or --url with a server that runs elsewhere")
	}
	if listens(ctx, "http://"+reachable(c.APIAddr)) {
		return fmt.Errorf("a server already listens on %s; stop it, or choose other addresses with --api-addr and --edge-addr", c.APIAddr)
	}
	err := e.serve(ctx, c, e.announce)
	if err == nil && c.PauseOnExit {
		e.note("stopped; sandboxes are paused, and `tartarus resume` brings them back under the next `tartarus up`")
	} else if err == nil {
		e.note("stopped; sandboxes live on until their time is up, and the next `tartarus up` takes them over")
	}
	return err
}

// serve runs a stack until ctx ends, and has announce say what it is once it is ready.
func (e *Env) serve(ctx context.Context, c *effective, announce func(*effective, daemon.About) error) error {
	c.Log = e.logger(c, slog.LevelInfo)
	st, err := e.stack(c.Config, e.Version)
	if err != nil {
		return err
	}
	result := make(chan error, 1)
	go func() { result <- st.Run(ctx) }()
	select {
	case err := <-result:
		return err
	case <-st.Ready():
	}
	if err := announce(c, st.About()); err != nil {
		e.note("%v", err) // a server does not stop because nobody reads its greeting
	}
	return <-result
}

// upDocument is what up prints as JSON when it is ready.
type upDocument struct {
	URL        string `json:"url"`
	EdgeURL    string `json:"edgeURL,omitempty"`
	Domain     string `json:"domain"`
	CAFile     string `json:"caFile,omitempty"`
	APIKeyFile string `json:"apiKeyFile"`
	Runtime    string `json:"runtime"`
	Tier       string `json:"tier"`
	DataDir    string `json:"dataDir"`
}

// announce says where everything is and how to use it. The key itself is not shown: terminals are recorded.
func (e *Env) announce(c *effective, a daemon.About) error {
	doc := upDocument{URL: a.URL, EdgeURL: a.EdgeURL, Domain: c.Domain, CAFile: a.CAFile, APIKeyFile: filepath.Join(c.DataDir, daemon.AdminKeyFile),
		Runtime: a.Driver, Tier: string(a.Tier), DataDir: c.DataDir}
	if e.JSON {
		return e.printLine(doc)
	}
	var b strings.Builder
	row := func(name, value string) { fmt.Fprintf(&b, "  %-10s %s\n", name, value) }
	fmt.Fprintf(&b, "tartarus %s is up\n\n", e.Version)
	row("API", a.URL)
	if a.EdgeURL != "" {
		domain := c.Domain
		if u, err := url.Parse(a.EdgeURL); err == nil && u.Port() != "" && u.Port() != "443" && !strings.Contains(domain, ":") {
			domain += ":" + u.Port()
		}
		row("edge", "https://{port}-{sandbox}."+domain)
	}
	if a.CAFile != "" {
		row("", "its certificates are signed by "+a.CAFile)
	}
	row("isolation", fmt.Sprintf("%s (%s)", a.Tier, a.Driver))
	row("data", c.DataDir)
	fmt.Fprintf(&b, "\nuse it from here:\n\n  tartarus create\n  tartarus ps\n\nand from the E2B SDKs:\n\n")
	fmt.Fprintf(&b, "  export E2B_API_URL=%s E2B_SANDBOX_URL=%s\n  export E2B_API_KEY=$(cat %s)\n", a.URL, a.URL, doc.APIKeyFile)
	fmt.Fprintf(&b, "\nCtrl-C stops the server; sandboxes live on.\n")
	_, err := fmt.Fprint(e.Stdout, b.String())
	return err
}
