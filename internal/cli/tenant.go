package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
)

func tenantCommand(e *Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tenant",
		Short: "Enter tenants, and bound what they may take",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(tenantCreateCommand(e), tenantListCommand(e), tenantShowCommand(e), tenantChangeCommand(e), tenantRemoveCommand(e))
	return cmd
}

// tenantFlags are what can be set about a tenant.
type tenantFlags struct {
	title             string
	labels            []string
	disabled, enabled bool
	quota             api.Quota
}

func (t *tenantFlags) add(f *pflag.FlagSet) {
	f.StringVar(&t.title, "title", "", "name for people")
	f.StringArrayVar(&t.labels, "label", nil, "NAME=VALUE that policies read (repeatable; replaces all)")
	f.Int64Var(&t.quota.Sandboxes, "sandboxes", 0, "most sandboxes at a time; 0 sets no bound")
	f.Int64Var(&t.quota.VCPU, "vcpu", 0, "most virtual processors of all of them")
	f.Int64Var(&t.quota.MemoryMB, "memory-mb", 0, "most MiB of memory of all of them")
	f.Int64Var(&t.quota.DiskMB, "disk-mb", 0, "most MiB of disk of all of them")
	f.Int64Var(&t.quota.SnapshotMB, "snapshot-mb", 0, "most MiB that paused sandboxes keep")
	f.Int64Var(&t.quota.CreatesPerMinute, "creates-per-minute", 0, "most creates within any minute")
	f.Int64Var(&t.quota.Queue, "queue", 0, "most creates that wait for a node")
}

// change is what the flags that were given say. now is the quota as it is.
func (t *tenantFlags) change(f *pflag.FlagSet, now api.Quota) (c api.TenantChange, err error) {
	if f.Changed("title") {
		c.Title = &t.title
	}
	if f.Changed("label") {
		if c.Labels, err = parsePairs(t.labels); err != nil {
			return c, fmt.Errorf("--label: %w", err)
		}
	}
	for name, v := range map[string][2]*int64{
		"sandboxes": {&now.Sandboxes, &t.quota.Sandboxes}, "vcpu": {&now.VCPU, &t.quota.VCPU}, "memory-mb": {&now.MemoryMB, &t.quota.MemoryMB},
		"disk-mb": {&now.DiskMB, &t.quota.DiskMB}, "snapshot-mb": {&now.SnapshotMB, &t.quota.SnapshotMB},
		"creates-per-minute": {&now.CreatesPerMinute, &t.quota.CreatesPerMinute}, "queue": {&now.Queue, &t.quota.Queue},
	} {
		if f.Changed(name) {
			*v[0] = *v[1]
			c.Quota = &now
		}
	}
	if t.disabled || t.enabled {
		c.Disabled = &t.disabled
	}
	return c, nil
}

func tenantCreateCommand(e *Env) *cobra.Command {
	var flags tenantFlags
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Enter a tenant",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := flags.change(cmd.Flags(), api.Quota{})
			if err != nil {
				return err
			}
			return e.withClient(func(cl *client.Client) error {
				t, err := cl.CreateTenant(cmd.Context(), api.NewTenant{Name: args[0], TenantChange: c})
				if err != nil {
					return err
				}
				return e.printTenant(*t)
			})
		},
	}
	flags.add(cmd.Flags())
	return cmd
}

func tenantListCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List tenants",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return listing(e, cmd, (*client.Client).Tenants, tenantHead, tenantRow)
		},
	}
}

// printTenant prints one document, and a table for people.
func (e *Env) printTenant(n api.Tenant) error {
	if e.JSON {
		return e.printJSON(n)
	}
	return printAll(e, []api.Tenant{n}, tenantHead, tenantRow)
}

var tenantHead = []string{"NAME", "TITLE", "STATE", "QUOTA", "LABELS"}

func tenantRow(n api.Tenant) []cell {
	state := "enabled"
	if n.Disabled {
		state = "disabled"
	}
	return cells(n.Name, dash(n.Title), state, dash(quotaText(n.Quota)), dash(strings.Join(pairs(n.Labels), ",")))
}

func quotaText(q api.Quota) string {
	var parts []string
	for _, v := range []struct {
		n    int64
		what string
	}{{q.Sandboxes, "sandboxes"}, {q.VCPU, "vcpu"}, {q.MemoryMB, "MiB memory"}, {q.DiskMB, "MiB disk"}, {q.SnapshotMB, "MiB snapshots"}, {q.CreatesPerMinute, "creates/min"}, {q.Queue, "queued"}} {
		if v.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", v.n, v.what))
		}
	}
	return strings.Join(parts, ", ")
}

func tenantShowCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME",
		Short: "Describe a tenant",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error {
				t, err := cl.Tenant(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return e.printTenant(*t)
			})
		},
	}
}

func tenantChangeCommand(e *Env) *cobra.Command {
	var flags tenantFlags
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: "Change a tenant: what is not named stays as it is",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error {
				now, err := cl.Tenant(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				c, err := flags.change(cmd.Flags(), now.Quota)
				if err != nil {
					return err
				}
				t, err := cl.ChangeTenant(cmd.Context(), args[0], c)
				if err != nil {
					return err
				}
				return e.printTenant(*t)
			})
		},
	}
	flags.add(cmd.Flags())
	cmd.Flags().BoolVar(&flags.disabled, "disable", false, "its keys do not work; what runs goes on until its time is up")
	cmd.Flags().BoolVar(&flags.enabled, "enable", false, "its keys work again")
	cmd.MarkFlagsMutuallyExclusive("disable", "enable")
	return cmd
}

func tenantRemoveCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "rm NAME",
		Short: "Forget a tenant that has neither keys that work nor sandboxes",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error { return cl.RemoveTenant(cmd.Context(), args[0]) })
		},
	}
}

func keyCommand(e *Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Make, rotate and revoke API keys",
		Long: `Make, rotate and revoke API keys. A key belongs to a tenant and has a role, each with all rights of the ones after it:

  admin       tenants and keys
  operator    nodes, the queue, policies, quarantine and the audit log
  developer   sandboxes, templates, secrets and volumes of its tenant
  reader      looks at them

Without --exec=false it may also run processes and touch files in the sandboxes that it sees.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(keyCreateCommand(e), keyListCommand(e), keyRotateCommand(e), keyRevokeCommand(e))
	return cmd
}

func keyCreateCommand(e *Env) *cobra.Command {
	var in api.NewKey
	var exec bool
	var expires time.Duration
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make an API key and print its secret, which is shown only now",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			in.Exec = &exec
			if expires > 0 {
				at := time.Now().Add(expires)
				in.ExpiresAt = &at
			}
			return e.withClient(func(cl *client.Client) error {
				k, err := cl.CreateKey(cmd.Context(), in)
				if err != nil {
					return err
				}
				return e.printSecret(k)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&in.Tenant, "tenant", "", "whose it is (default that of the key in use)")
	f.StringVar(&in.Name, "name", "", "what it is called")
	f.StringVar(&in.Role, "role", "developer", "admin, operator, developer or reader")
	f.BoolVar(&exec, "exec", true, "may run processes and touch files in sandboxes")
	f.DurationVar(&expires, "expires", 0, "how long it works (default for ever)")
	f.Float64Var(&in.Rate, "rate", 0, "requests per second (default what the server allows every key)")
	f.IntVar(&in.Burst, "burst", 0, "requests at once")
	return cmd
}

// printSecret prints what is needed of a new key: to stdout the secret alone, so that it can be put into a file.
func (e *Env) printSecret(k *api.Key) error {
	if e.JSON {
		return e.printJSON(k)
	}
	e.note("key %s of tenant %s, role %s; this is its secret, which cannot be shown again:", k.KeyID, k.Tenant, k.Role)
	_, err := fmt.Fprintln(e.Stdout, k.Key)
	return err
}

func keyListCommand(e *Env) *cobra.Command {
	var tenant string
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List API keys, without their secrets",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			now := time.Now()
			keys := func(cl *client.Client, ctx context.Context) ([]api.Key, error) { return cl.Keys(ctx, tenant) }
			return listing(e, cmd, keys, []string{"ID", "NAME", "TENANT", "ROLE", "EXEC", "STATE", "CREATED", "LAST USED"}, func(k api.Key) []cell {
				return cells(k.KeyID, dash(k.Name), k.Tenant, k.Role, fmt.Sprint(k.Exec), keyState(k, now), span(now.Sub(k.CreatedAt))+" ago", ago(k.LastUsed, now))
			})
		},
	}
	cmd.Flags().StringVar(&tenant, "tenant", "", "only those of this tenant")
	return cmd
}

func keyState(k api.Key, now time.Time) string {
	switch {
	case k.RevokedAt != nil:
		return "revoked"
	case k.ExpiresAt == nil:
		return "works"
	case k.ExpiresAt.After(now):
		return "works for " + span(k.ExpiresAt.Sub(now))
	}
	return "expired"
}

func ago(t *time.Time, now time.Time) string {
	if t == nil {
		return "-"
	}
	return span(max(0, now.Sub(*t))) + " ago"
}

func keyRotateCommand(e *Env) *cobra.Command {
	var grace time.Duration
	cmd := &cobra.Command{
		Use:   "rotate ID",
		Short: "Make a key that takes the place of this one, and print its secret",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error {
				k, err := cl.RotateKey(cmd.Context(), args[0], api.KeyRotation{GraceSeconds: int64(grace / time.Second)})
				if err != nil {
					return err
				}
				return e.printSecret(k)
			})
		},
	}
	cmd.Flags().DurationVar(&grace, "grace", 0, "how long the old one works beside it")
	return cmd
}

func keyRevokeCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: "End a key",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(cl *client.Client) error { return cl.RevokeKey(cmd.Context(), args[0]) })
		},
	}
}
