package cli

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
)

func logsCommand(e *Env) *cobra.Command {
	var o client.LogOptions
	var since time.Duration
	cmd := &cobra.Command{
		Use:               "logs ID",
		Short:             "Print a sandbox's log, also of one that ended",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: e.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error {
				if since > 0 {
					o.Since = time.Now().Add(-since)
				}
				for entry, err := range cl.Logs(cmd.Context(), args[0], o) {
					if err == nil {
						err = e.printEntry(entry)
					}
					if err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.Follow, "follow", "f", false, "go on until the sandbox ends")
	f.StringVar(&o.Level, "level", "", "least severe level: debug, info, warn or error")
	f.StringVar(&o.Search, "search", "", "only lines that contain this")
	f.DurationVar(&since, "since", 0, "only lines of this last time, such as 10m")
	return cmd
}

func (e *Env) printEntry(entry api.LogEntry) error {
	if e.JSON {
		return e.printLine(entry)
	}
	line := fmt.Sprintf("%s %-5s %s", entry.Timestamp.Local().Format("2006-01-02 15:04:05.000"), entry.Level, entry.Message)
	if len(entry.Fields) > 0 {
		line += "  " + strings.Join(pairs(entry.Fields), " ")
	}
	_, err := fmt.Fprintln(e.Stdout, printable(line))
	return err
}

func metricsCommand(e *Env) *cobra.Command {
	var watch bool
	var since time.Duration
	cmd := &cobra.Command{
		Use:               "metrics ID",
		Short:             "Print what a sandbox uses",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: e.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error {
				start := time.Now().Add(-since)
				if watch {
					return e.watchMetrics(cmd.Context(), cl, args[0], start)
				}
				found, err := cl.Metrics(cmd.Context(), args[0], start, time.Time{})
				if err != nil {
					return err
				}
				if e.JSON {
					if found == nil {
						found = []api.Metric{}
					}
					return e.printJSON(found)
				}
				fmt.Fprintln(e.Stdout, metricHead)
				for _, m := range found {
					fmt.Fprintln(e.Stdout, metricLine(m))
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on until the sandbox ends")
	cmd.Flags().DurationVar(&since, "since", 5*time.Minute, "how far back to go")
	return cmd
}

const metricHead = "TIME      CPU        MEMORY                  DISK"

func metricLine(m api.Metric) string {
	return fmt.Sprintf("%s  %5.1f%%/%d  %9s / %-9s  %9s / %s", m.Timestamp.Local().Format("15:04:05"), m.CPUUsedPct, m.CPUCount,
		size(m.MemUsed), size(m.MemTotal), size(m.DiskUsed), size(m.DiskTotal))
}

// watchEvery is the pause between two looks; nodes measure no more often than that.
const watchEvery = 2 * time.Second

func (e *Env) watchMetrics(ctx context.Context, cl *client.Client, id string, start time.Time) error {
	if !e.JSON {
		fmt.Fprintln(e.Stdout, metricHead)
	}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	var last time.Time
	for seen := false; ; seen = true {
		found, err := cl.Metrics(ctx, id, start, time.Time{})
		if seen && tartarus.Is(err, tartarus.NotFound) {
			return nil // it ended
		}
		if err != nil {
			return err
		}
		for _, m := range found {
			if !m.Timestamp.After(last) {
				continue
			}
			last, start = m.Timestamp, m.Timestamp
			if e.JSON {
				err = e.printLine(m)
			} else {
				_, err = fmt.Fprintln(e.Stdout, metricLine(m))
			}
			if err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// address is what url prints as JSON.
type address struct {
	SandboxID string `json:"sandboxID"`
	Port      int    `json:"port"`
	Host      string `json:"host"`
	URL       string `json:"url"`
}

func urlCommand(e *Env) *cobra.Command {
	var hostOnly bool
	cmd := &cobra.Command{
		Use:     "url ID PORT",
		Aliases: []string{"port"},
		Short:   "Print the address under which a port of a sandbox is reached",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			port, err := strconv.Atoi(args[1])
			if err != nil || port < 1 || port > 65535 {
				return fmt.Errorf("%q is no port", args[1])
			}
			cl, c, err := e.connect()
			if err != nil {
				return err
			}
			defer cl.Close()
			sb, err := cl.Get(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			domain := edgeDomain(c)
			if sb.Domain != nil && *sb.Domain != "" {
				domain = *sb.Domain
			}
			host := fmt.Sprintf("%d-%s.%s", port, sb.SandboxID, domain)
			switch {
			case e.JSON:
				return e.printJSON(address{sb.SandboxID, port, host, "https://" + host})
			case hostOnly:
				_, err = fmt.Fprintln(e.Stdout, host)
			default:
				_, err = fmt.Fprintln(e.Stdout, "https://"+host)
			}
			return err
		},
	}
	cmd.ValidArgsFunction = e.completeSandboxes
	cmd.Flags().BoolVar(&hostOnly, "host", false, "the host name only")
	return cmd
}

// edgeDomain is the domain with the edge's port, unless that is the one of https.
func edgeDomain(c *effective) string {
	if strings.Contains(c.Domain, ":") {
		return c.Domain
	}
	if _, port, err := net.SplitHostPort(c.EdgeAddr); err == nil && port != "443" {
		return c.Domain + ":" + port
	}
	return c.Domain
}
