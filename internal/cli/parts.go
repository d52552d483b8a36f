package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tartarus-sandbox/tartarus/internal/daemon"
)

func olympusCommand(e *Env) *cobra.Command {
	return e.partCommand(daemon.Control, &cobra.Command{
		Use:   "olympus",
		Short: "Run a replica of the control plane: API and edge; nodes come to it",
		Long: `Run a replica of the control plane, until Ctrl-C or SIGTERM: the API, the edge, and a listener that nodes come to.

Replicas share nothing but their store in Redis (--redis-url); any number of them serves the same fleet. Without Redis there
can be one, with its store in the data folder.

A node joins with a token: ` + "`tartarus node token > FILE`" + ` here, and there
` + "`tartarus hecatoncheir --olympus HOST:7301 --join-token-file FILE`" + `.`,
	})
}

func hecatoncheirCommand(e *Env) *cobra.Command {
	return e.partCommand(daemon.Agent, &cobra.Command{
		Use:   "hecatoncheir",
		Short: "Run a node: it dials replicas of the control plane and runs sandboxes for them",
		Long: `Run a node, until Ctrl-C or SIGTERM. It dials the replicas named by --olympus, learns of all others from them, and keeps a session
to each. Sandboxes live on when it stops, and while no replica can be reached.

The first start joins the fleet with the token in --join-token-file; later ones have a certificate of their own, which renews itself.`,
	})
}

// partCommand makes a command that runs one part of a stack.
func (e *Env) partCommand(part daemon.Part, cmd *cobra.Command) *cobra.Command {
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := e.configure(cmd.Flags())
		if err != nil {
			return err
		}
		c.Part = part
		return e.runPart(cmd.Context(), c)
	}
	addSettings(cmd.Flags())
	return cmd
}

// partDocument is what a part prints as JSON when it is ready.
type partDocument struct {
	URL        string `json:"url,omitempty"`
	EdgeURL    string `json:"edgeURL,omitempty"`
	FleetAddr  string `json:"fleetAddr,omitempty"`
	CAFile     string `json:"caFile,omitempty"`
	APIKeyFile string `json:"apiKeyFile,omitempty"`
	Node       string `json:"node,omitempty"`
	Runtime    string `json:"runtime,omitempty"`
	Tier       string `json:"tier,omitempty"`
	DataDir    string `json:"dataDir"`
}

func (e *Env) runPart(ctx context.Context, c *effective) error {
	if c.Part == daemon.Agent && os.Geteuid() != 0 {
		return fmt.Errorf("running sandboxes needs root (network namespaces, cgroups, nftables): use sudo")
	}
	return e.serve(ctx, c, e.announcePart)
}

func (e *Env) announcePart(c *effective, a daemon.About) error {
	doc := partDocument{URL: a.URL, EdgeURL: a.EdgeURL, FleetAddr: a.FleetAddr, CAFile: a.CAFile, Runtime: a.Driver, Tier: string(a.Tier), DataDir: c.DataDir}
	if c.Part == daemon.Control {
		doc.APIKeyFile = filepath.Join(c.DataDir, daemon.AdminKeyFile)
	} else {
		doc.Node = c.NodeName
	}
	if e.JSON {
		return e.printLine(doc)
	}
	var b strings.Builder
	for _, row := range [][2]string{
		{"API", doc.URL}, {"edge", doc.EdgeURL}, {"nodes", doc.FleetAddr}, {"node", doc.Node}, {"isolation", strings.TrimSpace(doc.Tier + " " + doc.Runtime)}, {"data", doc.DataDir},
	} {
		if row[1] != "" {
			fmt.Fprintf(&b, "  %-10s %s\n", row[0], row[1])
		}
	}
	_, err := fmt.Fprintf(e.Stdout, "tartarus %s is up\n\n%s", e.Version, b.String())
	return err
}
