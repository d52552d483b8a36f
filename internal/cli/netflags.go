package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
)

// proxyPassword is the variable with the password of an egress proxy: arguments are for everybody on the machine to read.
const proxyPassword = "TARTARUS_EGRESS_PROXY_PASSWORD"

// netFlags are the flags that say what may leave a sandbox, and how.
type netFlags struct {
	none, proxyTLS            bool
	allow, deny, dns, headers []string
	proxy                     string
}

func (n *netFlags) add(f *pflag.FlagSet) {
	f.BoolVar(&n.none, "no-network", false, "nothing may leave the sandbox")
	f.StringSliceVar(&n.allow, "allow", nil, "address, CIDR or domain that may be reached; everything else may not, unless --deny says what (repeatable)")
	f.StringSliceVar(&n.deny, "deny", nil, "address or CIDR that may not be reached (repeatable)")
	f.StringSliceVar(&n.dns, "dns", nil, "name server to ask instead of the host's (repeatable)")
	f.StringArrayVar(&n.headers, "header", nil,
		"DOMAIN=NAME: VALUE, put into HTTPS requests to a domain; ${e2b.secrets.NAME} in the value is a secret that the sandbox never sees (repeatable)")
	f.StringVar(&n.proxy, "egress-proxy", "", "SOCKS5 server, [USER@]HOST:PORT, that all TCP goes through; "+proxyPassword+" has the password")
	f.BoolVar(&n.proxyTLS, "egress-proxy-tls", false, "reach that server by TLS")
}

// config turns the flags into what the API takes; nil where none was given.
func (n *netFlags) config(lookup func(string) (string, bool)) (*api.NetworkConfig, error) {
	if n.none && len(n.allow)+len(n.deny) > 0 {
		return nil, errors.New("--no-network leaves nothing for --allow and --deny to say")
	}
	if n.proxyTLS && n.proxy == "" {
		return nil, errors.New("--egress-proxy-tls needs --egress-proxy")
	}
	if len(n.allow)+len(n.deny)+len(n.dns)+len(n.headers) == 0 && n.proxy == "" {
		return nil, nil
	}
	out := &api.NetworkConfig{AllowOut: n.allow, DenyOut: n.deny, DNSServers: n.dns}
	if len(n.allow) > 0 && len(n.deny) == 0 {
		out.DenyOut = []string{"0.0.0.0/0"}
	}
	for _, h := range n.headers {
		domain, header, ok := strings.Cut(h, "=")
		name, value, named := strings.Cut(header, ":")
		if !ok || !named || domain == "" || strings.TrimSpace(name) == "" {
			return nil, fmt.Errorf("--header %q: not DOMAIN=NAME: VALUE", h)
		}
		if out.Rules == nil {
			out.Rules = map[string][]api.NetworkRule{}
		}
		if out.Rules[domain] == nil {
			out.Rules[domain] = []api.NetworkRule{{Transform: &api.Transform{Headers: map[string]string{}}}}
		}
		out.Rules[domain][0].Transform.Headers[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	if n.proxy != "" {
		out.EgressProxy = &api.EgressProxy{Address: n.proxy}
		if user, address, ok := strings.Cut(n.proxy, "@"); ok {
			out.EgressProxy.Username, out.EgressProxy.Address = user, address
		}
		if strings.Contains(out.EgressProxy.Username, ":") {
			return nil, fmt.Errorf("--egress-proxy: a password in an argument can be read by everybody on this machine; put it into %s", proxyPassword)
		}
		out.EgressProxy.Password, _ = lookup(proxyPassword)
		if n.proxyTLS {
			out.EgressProxy.TLS = &api.ProxyTLS{Enabled: true}
		}
	}
	return out, nil
}

func networkCommand(e *Env) *cobra.Command {
	var n netFlags
	var open bool
	cmd := &cobra.Command{
		Use:   "network ID [flags]",
		Short: "Print what may leave a sandbox, or replace it while it runs",
		Long: `Print what may leave a sandbox, or replace it while it runs.

With any flag, everything is replaced by what the flags say: what they leave out is cleared. Connections that are not allowed any more are cut.
What may come in is fixed when a sandbox is created.`,
		Example: "  tartarus network ID --allow api.example.com --header 'api.example.com=Authorization: Bearer ${e2b.secrets.KEY}'\n  tartarus network ID --open",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := n.config(e.lookup)
			if err != nil {
				return err
			}
			return e.withClient(func(cl *client.Client) error {
				if in == nil && !n.none && !open {
					sb, err := cl.Get(cmd.Context(), args[0])
					if err != nil {
						return err
					}
					return e.printNetwork(sb)
				}
				if open && (in != nil || n.none) {
					return errors.New("--open leaves nothing for other flags to say")
				}
				if in == nil {
					in = &api.NetworkConfig{}
				}
				if n.none {
					off := false
					in.AllowInternetAccess = &off
				}
				return cl.SetNetwork(cmd.Context(), args[0], *in)
			})
		},
	}
	n.add(cmd.Flags())
	cmd.Flags().BoolVar(&open, "open", false, "everything may leave but what sandboxes never reach")
	return cmd
}

func (e *Env) printNetwork(sb *api.SandboxDetail) error {
	if e.JSON {
		return e.printJSON(sb.Network)
	}
	for _, r := range append([][2]string{{"internet", fmt.Sprint(sb.AllowInternetAccess)}}, networkRows(sb.Network)...) {
		if r[1] == "" {
			continue
		}
		if _, err := fmt.Fprintf(e.Stdout, "%-14s %s\n", r[0], printable(r[1])); err != nil {
			return err
		}
	}
	return nil
}

// networkRows describe what may leave, a line each.
func networkRows(n *api.NetworkConfig) [][2]string {
	if n == nil {
		return nil
	}
	rows := [][2]string{{"allow", strings.Join(n.AllowOut, " ")}, {"deny", strings.Join(n.DenyOut, " ")}, {"name servers", strings.Join(n.DNSServers, " ")}}
	if p := n.EgressProxy; p != nil {
		text := p.Address
		if p.Username != "" {
			text = p.Username + "@" + text
		}
		if p.TLS != nil && p.TLS.Enabled {
			text += " by TLS"
		}
		rows = append(rows, [2]string{"egress proxy", text})
	}
	var headers []string
	for domain, rules := range n.Rules {
		for _, r := range rules {
			if r.Transform == nil {
				continue
			}
			for name, value := range r.Transform.Headers {
				headers = append(headers, domain+"="+name+": "+value)
			}
		}
	}
	slices.Sort(headers)
	for _, h := range headers {
		rows = append(rows, [2]string{"header", h})
	}
	return rows
}
