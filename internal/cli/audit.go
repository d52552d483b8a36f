package cli

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
	"github.com/tartarus-sandbox/tartarus/internal/audit"
)

func auditCommand(e *Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Read, export and verify the record of who did what",
		Long: `Read, export and verify the record of who did what.

Every decision, and every act that changes a sandbox or reads from it, is on record before it happens. Each record carries the hash of the one
before it, and signed checkpoints cover them: what was changed, taken out, put in, or cut off is found by ` + "`tartarus audit verify`" + `.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(auditListCommand(e), auditTailCommand(e), auditExportCommand(e), auditVerifyCommand(e), auditKeysCommand(e),
		auditRotateCommand(e), auditTrustCommand(e, true), auditTrustCommand(e, false))
	return cmd
}

// auditFilter is the flags that choose records.
type auditFilter struct {
	since, until                                     string
	tenant, actor, action, object, request, verdicts string
	failed                                           bool
}

func (a *auditFilter) flags(f *pflag.FlagSet) {
	f.StringVar(&a.since, "since", "", "from this time on: 2h, or 2026-01-31T12:00:00Z")
	f.StringVar(&a.until, "until", "", "before this time")
	f.StringVar(&a.tenant, "tenant", "", "of this tenant")
	f.StringVar(&a.actor, "actor", "", "by the API key with this id")
	f.StringVar(&a.action, "action", "", "such as sandbox.create, or sandbox for all that begin so")
	f.StringVar(&a.object, "object", "", "on the sandbox, or whatever else, with this id")
	f.StringVar(&a.request, "request", "", "of the request with this id")
	f.StringVar(&a.verdicts, "verdict", "", "allow, deny or quarantine")
	f.BoolVar(&a.failed, "failed", false, "only what was denied or went wrong")
}

// query is the filter as the API reads it.
func (a *auditFilter) query(now time.Time) (url.Values, error) {
	q := url.Values{}
	for name, v := range map[string]string{"since": a.since, "until": a.until} {
		if v == "" {
			continue
		}
		if d, err := time.ParseDuration(v); err == nil {
			v = now.Add(-d).UTC().Format(time.RFC3339Nano)
		} else if _, err := time.Parse(time.RFC3339Nano, v); err != nil {
			return nil, fmt.Errorf("--%s: %q is neither a duration such as 2h nor a time such as 2026-01-31T12:00:00Z", name, v)
		}
		q.Set(name, v)
	}
	for name, v := range map[string]string{"tenant": a.tenant, "actor": a.actor, "action": a.action, "object": a.object, "request": a.request, "verdict": a.verdicts} {
		if v != "" {
			q.Set(name, v)
		}
	}
	if a.failed {
		q.Set("failed", "true")
	}
	return q, nil
}

func auditListCommand(e *Env) *cobra.Command {
	var filter auditFilter
	var limit int
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the newest records",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q, err := filter.query(time.Now())
			if err != nil {
				return err
			}
			q.Set("limit", strconv.Itoa(limit))
			return e.withClient(func(cl *client.Client) error {
				found, _, err := cl.Audit(cmd.Context(), q)
				if err != nil {
					return err
				}
				if e.JSON {
					return e.printJSON(found)
				}
				t := table{head: auditHead}
				for _, raw := range found {
					row, err := auditRow(raw)
					if err != nil {
						return err
					}
					t.rows = append(t.rows, row)
				}
				return t.print(e.Stdout, e.coloured(e.Stdout))
			})
		},
	}
	filter.flags(cmd.Flags())
	cmd.Flags().IntVarP(&limit, "limit", "n", 50, "how many, at most 1000")
	return cmd
}

var auditHead = []string{"TIME", "ACTION", "STAGE", "VERDICT", "ACTOR", "ADDRESS", "TENANT", "OBJECT", "REQUEST", "WHY"}

func auditRow(raw json.RawMessage) ([]cell, error) {
	var r audit.Record
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("read record: %w", err)
	}
	verdict, colour := string(r.Verdict), green
	var why []string
	for _, q := range r.Reasons {
		why = append(why, q.Message)
	}
	switch {
	case r.Verdict == audit.Deny, r.Verdict == audit.Quarantine:
		colour = red
	case r.Error != "":
		verdict, colour = "failed", yellow
		why = append(why, r.Error)
	case r.Stage == audit.Outcome:
		verdict = "done"
	}
	who := r.Actor.Kind
	if r.Actor.ID != "" {
		who = r.Actor.ID
	}
	if r.Actor.Name != "" {
		who = r.Actor.Name
	}
	object := r.Object.Kind
	if r.Object.ID != "" {
		object += " " + r.Object.ID
	}
	return []cell{{r.Time.Local().Format("2006-01-02 15:04:05.000"), plain}, {r.Action, plain}, {string(r.Stage), faint}, {verdict, colour}, {who, plain},
		{dash(r.Actor.Address), plain}, {dash(r.Tenant), plain}, {object, plain}, {dash(r.Request), faint}, {strings.Join(why, "; "), plain}}, nil
}

func auditTailCommand(e *Env) *cobra.Command {
	var filter auditFilter
	var n int
	var every time.Duration
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Print records as they are written, until interrupted",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q, err := filter.query(time.Now())
			if err != nil {
				return err
			}
			q.Set("limit", strconv.Itoa(max(1, n)))
			return e.withClient(func(cl *client.Client) error {
				for first := true; ; first = false {
					found, next, err := cl.Audit(cmd.Context(), q)
					if err != nil {
						return err
					}
					if first && n == 0 {
						found = nil
					}
					for _, raw := range found {
						if err := e.printAuditLine(raw); err != nil {
							return err
						}
					}
					q.Set("nextToken", next)
					q.Set("limit", "1000")
					if len(found) == 1000 {
						continue
					}
					select {
					case <-cmd.Context().Done():
						return cmd.Context().Err()
					case <-time.After(every):
					}
				}
			})
		},
	}
	filter.flags(cmd.Flags())
	cmd.Flags().IntVarP(&n, "lines", "n", 10, "how many earlier records to begin with")
	cmd.Flags().DurationVar(&every, "every", time.Second, "how often to look")
	return cmd
}

func (e *Env) printAuditLine(raw json.RawMessage) error {
	if e.JSON {
		return e.printLine(raw)
	}
	row, err := auditRow(raw)
	if err != nil {
		return err
	}
	texts := make([]string, 0, len(row))
	for _, c := range row {
		texts = append(texts, printable(c.text))
	}
	_, err = fmt.Fprintln(e.Stdout, strings.TrimSpace(strings.Join(texts, "  ")))
	return err
}

func auditExportCommand(e *Env) *cobra.Command {
	var filter auditFilter
	var format, file string
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write records for other systems: JSON lines, CEF or OCSF",
		Long: `Write all matching records, a line each: as JSON lines, which are the log's own bytes and can be verified again, as CEF (Common Event
Format), or as OCSF 1.3 (Open Cybersecurity Schema Framework).`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			q, err := filter.query(time.Now())
			if err != nil {
				return err
			}
			q.Set("format", format)
			cl, _, err := e.connect()
			if err != nil {
				return err
			}
			defer cl.Close()
			if file == "" {
				return cl.AuditExport(cmd.Context(), q, e.Stdout)
			}
			f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
			if err != nil {
				return err
			}
			w := bufio.NewWriter(f)
			if err = cl.AuditExport(cmd.Context(), q, w); err == nil {
				err = w.Flush()
			}
			if cerr := f.Close(); err == nil {
				err = cerr
			}
			return err
		},
	}
	filter.flags(cmd.Flags())
	cmd.Flags().StringVar(&format, "format", "jsonl", "jsonl, cef or ocsf")
	cmd.Flags().StringVarP(&file, "output", "o", "", "file to write (default standard output)")
	return cmd
}

func auditVerifyCommand(e *Env) *cobra.Command {
	var dir, root string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Find whether any record was changed, removed, inserted, reordered, replayed or cut off",
		Long: `Hold the audit log against its hashes and signatures. The first record of each chain that is not what it was is named, and the exit code is 1.

The server verifies its own log, unless --dir names a folder to read without one. Note the root key that is printed the first time, and give it
with --root from then on: whoever could write everything anew could not sign it with that key.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, err := e.auditReport(cmd, dir, root)
			if err != nil {
				return err
			}
			if e.JSON {
				err = e.printJSON(report)
			} else {
				err = e.printAuditReport(report)
			}
			if err == nil && !report.OK {
				return exit(1)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "audit folder to verify on this machine, without a server")
	cmd.Flags().StringVar(&root, "root", "", "id of the key that signed the first checkpoint")
	return cmd
}

func (e *Env) auditReport(cmd *cobra.Command, dir, root string) (report audit.Report, err error) {
	if dir != "" {
		return audit.Verify(cmd.Context(), audit.Verification{Dir: dir, Root: root})
	}
	cl, _, err := e.connect()
	if err != nil {
		return report, err
	}
	defer cl.Close()
	raw, err := cl.AuditVerify(cmd.Context(), root)
	if err != nil {
		return report, err
	}
	if err := json.Unmarshal(raw, &report); err != nil {
		return report, fmt.Errorf("read report: %w", err)
	}
	return report, nil
}

func (e *Env) printAuditReport(r audit.Report) error {
	var b strings.Builder
	for _, c := range r.Chains {
		fmt.Fprintf(&b, "chain %s: records %d to %d", c.Chain, c.From, c.To)
		if c.Unsigned > 0 {
			fmt.Fprintf(&b, ", the last %d not signed yet", c.Unsigned)
		}
		b.WriteByte('\n')
	}
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "%s\n", printable(f.String()))
	}
	fmt.Fprintf(&b, "%d records, %d checkpoints, root key %s: ", r.Records, r.Checkpoints, dash(r.Root))
	if r.OK {
		b.WriteString("sound\n")
	} else {
		b.WriteString("NOT sound\n")
	}
	_, err := fmt.Fprint(e.Stdout, b.String())
	return err
}

func auditKeysCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "keys",
		Short: "List the keys whose signatures of the log count",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return listing(e, cmd, (*client.Client).AuditKeys, []string{"KEY", "PUBLIC KEY", "OF THIS SERVER"}, func(k api.AuditKey) []cell {
				return cells(k.KeyID, k.PublicKey, strconv.FormatBool(k.Own))
			})
		},
	}
}

func auditRotateCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "rotate",
		Short: "Give the server a new signing key, handed over to by the old one",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return e.withClient(func(cl *client.Client) error {
				key, err := cl.RotateAuditKey(cmd.Context())
				if err != nil {
					return err
				}
				if e.JSON {
					return e.printJSON(key)
				}
				_, err = fmt.Fprintln(e.Stdout, key.KeyID)
				return err
			})
		},
	}
}

func auditTrustCommand(e *Env, trust bool) *cobra.Command {
	cmd := &cobra.Command{Use: "trust KEY", Short: "Make the signing key of another replica count", Args: cobra.ExactArgs(1)}
	if !trust {
		cmd.Use, cmd.Short = "distrust KEY", "Make a signing key count no more"
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return e.withClient(func(cl *client.Client) error {
			return cl.TrustAuditKey(cmd.Context(), args[0], trust)
		})
	}
	return cmd
}
