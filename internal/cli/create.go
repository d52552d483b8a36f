package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
)

// wanted are the flags that describe a sandbox to make.
type wanted struct {
	template, memory, disk, runtime, tier string
	cpus                                  int64
	timeout                               time.Duration
	env, metadata, volumes, tokens        []string
	quiet, awake                          bool
	grace                                 time.Duration
	net                                   netFlags
}

func (w *wanted) add(f *pflag.FlagSet) {
	f.StringVar(&w.template, "template", "", "template (default base when built, else tiny)")
	f.Int64Var(&w.cpus, "cpus", 0, "virtual processors")
	f.StringVar(&w.memory, "memory", "", "memory, such as 512M or 2G; a plain number is MiB")
	f.StringVar(&w.disk, "disk", "", "disk, such as 10G; a plain number is MiB")
	f.StringVar(&w.runtime, "runtime", "", "runtime; refused where it is not usable")
	f.StringVar(&w.tier, "tier", "", "weakest isolation that will do: user-kernel, emulated-vm or hardware-vm")
	f.StringArrayVarP(&w.env, "env", "e", nil, "environment variable NAME=VALUE, or NAME to pass on this one's (repeatable)")
	f.StringArrayVar(&w.metadata, "metadata", nil, "metadata NAME=VALUE (repeatable)")
	f.StringArrayVarP(&w.volumes, "volume", "v", nil, "volume NAME:PATH, to have it at an absolute path in the sandbox (repeatable)")
	w.net.add(f)
	f.StringArrayVar(&w.tokens, "token", nil, "identity token NAME=AUDIENCE, which --header puts in as ${e2b.identity.tokens.NAME} (repeatable)")
	f.DurationVar(&w.grace, "grace", -1, "time that it has to end in good order, whoever ends it (default what its template says, else none for a kill and 2s for a timeout)")
	f.Lookup("grace").DefValue = "0s" // which is not printed
	f.BoolVar(&w.awake, "no-hibernate", false, "keep it awake however idle it is")
	f.BoolVarP(&w.quiet, "quiet", "q", false, "no notes on stderr")
}

// request turns the flags into the body of a create. A create without a template leaves it to the server.
func (w *wanted) request(lookup func(string) (string, bool)) (api.NewSandbox, error) {
	in := api.NewSandbox{TemplateID: w.template, Runtime: w.runtime, Tier: w.tier}
	var err error
	if in.Metadata, err = parsePairs(w.metadata); err != nil {
		return in, fmt.Errorf("--metadata: %w", err)
	}
	if in.EnvVars, err = environment(w.env, lookup); err != nil {
		return in, err
	}
	for _, v := range w.volumes {
		name, path, ok := strings.Cut(v, ":")
		if !ok || name == "" || !strings.HasPrefix(path, "/") {
			return in, fmt.Errorf("--volume %q: not NAME:/PATH", v)
		}
		in.VolumeMounts = append(in.VolumeMounts, api.VolumeMount{Name: name, Path: path})
	}
	if w.cpus < 0 {
		return in, fmt.Errorf("--cpus %d: must be at least 1", w.cpus)
	}
	if w.cpus > 0 {
		in.CPUCount = &w.cpus
	}
	if in.MemoryMB, err = megabytes("memory", w.memory); err != nil {
		return in, err
	}
	if in.DiskSizeMB, err = megabytes("disk", w.disk); err != nil {
		return in, err
	}
	if w.timeout < 0 {
		return in, fmt.Errorf("--timeout %s: must not be negative", w.timeout)
	}
	if w.timeout > 0 {
		in.Timeout = seconds(w.timeout)
	}
	if w.grace >= 0 {
		in.Grace = seconds(w.grace)
	}
	if w.awake {
		no := false
		in.Hibernate = &no
	}
	for _, t := range w.tokens {
		name, audience, ok := strings.Cut(t, "=")
		if !ok || name == "" || audience == "" {
			return in, fmt.Errorf("--token %q: not NAME=AUDIENCE", t)
		}
		if in.IAM == nil {
			in.IAM = &api.IAM{Tokens: map[string]api.IAMToken{}}
		}
		in.IAM.Tokens[name] = api.IAMToken{Audience: audience, TokenType: "JWT-SVID"}
	}
	if in.Network, err = w.net.config(lookup); err != nil {
		return in, err
	}
	if w.net.none {
		off := false
		in.AllowInternetAccess = &off
	}
	return in, nil
}

// environment reads NAME=VALUE, and NAME alone as what this process has.
func environment(vars []string, lookup func(string) (string, bool)) (map[string]string, error) {
	out := map[string]string{}
	for _, v := range vars {
		name, value, ok := strings.Cut(v, "=")
		if !ok {
			value, ok = lookup(name)
			if !ok {
				continue // as container tools do: what is not set here is not set there
			}
		}
		if name == "" || strings.ContainsRune(v, 0) {
			return nil, fmt.Errorf("--env %q: not NAME=VALUE", v)
		}
		out[name] = value
	}
	return out, nil
}

// megabytes reads a size in MiB; units are powers of 1024.
func megabytes(flag, text string) (*int64, error) {
	if text == "" {
		return nil, nil
	}
	number := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(text), "B"), "I")
	factor := 1.0
	if n := len(number); n > 0 {
		if f, ok := map[byte]float64{'K': 1.0 / 1024, 'M': 1, 'G': 1024, 'T': 1024 * 1024}[number[n-1]]; ok {
			factor, number = f, number[:n-1]
		}
	}
	f, err := strconv.ParseFloat(number, 64)
	mb := math.Ceil(f * factor)
	if err != nil || !(mb >= 1 && mb <= 1<<30) {
		return nil, fmt.Errorf("--%s %q: not a size such as 512M or 2G", flag, text)
	}
	out := int64(mb)
	return &out, nil
}

// seconds rounds up: half a second must not become none.
func seconds(d time.Duration) *int64 {
	s := int64((d + time.Second - 1) / time.Second)
	return &s
}

// noteTemplate says so when a create that named no template got another one than people expect.
func (e *Env) noteTemplate(w *wanted, sb *api.Sandbox) {
	if w.template == "" && !w.quiet && sb.Alias == "tiny" {
		e.note("template base is not built, using tiny (a shell and small tools); `tartarus template build base` builds it")
	}
}

func createCommand(e *Env) *cobra.Command {
	var w wanted
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a sandbox and print its id",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			in, err := w.request(e.lookup)
			if err != nil {
				return err
			}
			return e.withClient(func(cl *client.Client) error {
				sb, err := cl.Create(cmd.Context(), in, client.CreateOptions{IdempotencyKey: tartarus.NewID()})
				if err != nil {
					return unknownTemplate(err, in.TemplateID)
				}
				e.noteTemplate(&w, sb)
				if e.JSON {
					sb.EnvdAccessToken, sb.TrafficAccessToken = "", ""
					return e.printJSON(sb)
				}
				_, err = fmt.Fprintln(e.Stdout, sb.SandboxID)
				return err
			})
		},
	}
	w.add(cmd.Flags())
	cmd.Flags().DurationVar(&w.timeout, "timeout", 0, "end it after this time (default the server's, 5m)")
	return cmd
}
