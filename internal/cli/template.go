package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/daemon"
	"github.com/tartarus-sandbox/tartarus/internal/image"
)

func templateCommand(e *Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "template",
		Aliases: []string{"templates"},
		Short:   "Build, list and remove templates",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(templateBuildCommand(e), templateListCommand(e), templateRemoveCommand(e))
	return cmd
}

// templates opens the templates of this machine's data folder.
func (e *Env) templates() (*image.Store, error) {
	if name := e.named(); name != "" {
		return nil, fmt.Errorf("templates are built and removed on the machine that keeps them, not through %s: leave --url and %s away there, "+
			"or build from code with an SDK", name, envURL)
	}
	c, err := e.configure(nil)
	if err != nil {
		return nil, err
	}
	return image.New(image.Config{Dir: filepath.Join(c.DataDir, daemon.TemplatesDir)})
}

// templateDocument is a template as template ls and build print it.
type templateDocument struct {
	TemplateID string    `json:"templateID"`
	Name       string    `json:"name"`
	Tags       []string  `json:"tags"`
	CPUCount   int       `json:"cpuCount"`
	MemoryMB   int64     `json:"memoryMB"`
	DiskSizeMB int64     `json:"diskSizeMB"`
	SizeBytes  int64     `json:"sizeBytes,omitempty"` // of the image; not known of a server's
	Source     string    `json:"source,omitempty"`
	SignedBy   []string  `json:"signedBy,omitempty"` // ids of keys
	CreatedAt  time.Time `json:"createdAt"`
}

func documentOf(t image.Template) templateDocument {
	return templateDocument{TemplateID: t.ID, Name: t.Name, Tags: t.Tags, CPUCount: t.VCPU, MemoryMB: t.MemoryMB, DiskSizeMB: t.DiskMB,
		SizeBytes: t.Size, Source: t.Recipe, SignedBy: t.SignedBy, CreatedAt: t.CreatedAt}
}

func templateListCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List templates: a named server's, else this machine's",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := e.listTemplates(cmd.Context())
			if err != nil {
				return err
			}
			return printAll(e, list, []string{"NAME", "TAGS", "ID", "CPU", "MEMORY", "DISK", "SIZE", "FROM", "AGE"}, func(d templateDocument) []cell {
				bytes := "-"
				if d.SizeBytes > 0 {
					bytes = size(d.SizeBytes)
				}
				return cells(d.Name, dash(strings.Join(d.Tags, ",")), d.TemplateID, fmt.Sprint(d.CPUCount), size(d.MemoryMB<<20), size(d.DiskSizeMB<<20),
					bytes, dash(d.Source), span(time.Since(d.CreatedAt)))
			})
		},
	}
}

func (e *Env) listTemplates(ctx context.Context) ([]templateDocument, error) {
	out := []templateDocument{}
	if e.named() == "" {
		s, err := e.templates()
		if err != nil {
			return nil, err
		}
		list, err := s.List()
		for _, t := range list {
			out = append(out, documentOf(t))
		}
		return out, err
	}
	cl, _, err := e.connect()
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	list, err := cl.Templates(ctx)
	for _, t := range list {
		d := templateDocument{TemplateID: t.TemplateID, Name: t.TemplateID, Tags: []string{}, CPUCount: t.CPUCount, MemoryMB: t.MemoryMB,
			DiskSizeMB: t.DiskSizeMB, CreatedAt: t.CreatedAt}
		if len(t.Names) > 0 {
			d.Name = t.Names[0]
		}
		out = append(out, d)
	}
	return out, err
}

func templateRemoveCommand(e *Env) *cobra.Command {
	return &cobra.Command{
		Use:     "rm NAME[:TAG]...",
		Aliases: []string{"remove"},
		Short:   "Remove templates; sandboxes made from them run on",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, names []string) error {
			s, err := e.templates()
			if err != nil {
				return err
			}
			var errs []error
			for _, name := range names {
				if err := s.Remove(cmd.Context(), name); err != nil {
					errs = append(errs, err)
					continue
				}
				if !e.JSON {
					fmt.Fprintln(e.Stdout, name)
				}
			}
			if e.JSON && len(errs) == 0 {
				errs = append(errs, e.printJSON(map[string][]string{"removed": names}))
			}
			return errors.Join(errs...)
		},
	}
}

// building are the flags of a template to build.
type building struct {
	from, user, workdir, start, ready, memory, disk string
	cpus                                            int
	env, tags                                       []string
	force, signed                                   bool
}

func (b *building) add(f *pflag.FlagSet) {
	f.StringVar(&b.from, "from", "", "source: an image reference such as debian:12, or dir:PATH, tar:PATH, archive:PATH (docker save), layout:PATH (OCI layout)")
	f.BoolVar(&b.force, "force", false, "build even when an equal one is there")
	f.BoolVar(&b.signed, "signed", false, "refuse a container image that no key of signatureKeys signed")
	f.StringArrayVar(&b.tags, "tag", nil, "tag (repeatable)")
	f.StringArrayVarP(&b.env, "env", "e", nil, "environment variable NAME=VALUE (repeatable)")
	f.StringVarP(&b.user, "user", "u", "", "default user")
	f.StringVarP(&b.workdir, "workdir", "w", "", "default folder")
	f.StringVar(&b.start, "start-cmd", "", "command that runs from the start of every sandbox")
	f.StringVar(&b.ready, "ready-cmd", "", "command that succeeds once the start command is up")
	f.IntVar(&b.cpus, "cpus", 0, "virtual processors of its sandboxes")
	f.StringVar(&b.memory, "memory", "", "memory of its sandboxes, such as 512M")
	f.StringVar(&b.disk, "disk", "", "disk of its sandboxes, such as 10G")
}

// spec turns the flags into what the image store builds.
func (b *building) spec(name string, lookup func(string) (string, bool)) (image.Spec, error) {
	s := image.Spec{Name: name, Tags: b.tags, User: b.user, WorkDir: b.workdir, StartCmd: b.start, ReadyCmd: b.ready, VCPU: b.cpus, Force: b.force, Signed: b.signed}
	if base, tag, ok := strings.Cut(name, ":"); ok {
		s.Name, s.Tags = base, append(s.Tags, tag)
	}
	var err error
	if s.Env, err = environment(b.env, lookup); err != nil {
		return s, err
	}
	for _, size := range []struct {
		flag, text string
		to         *int64
	}{{"memory", b.memory, &s.MemoryMB}, {"disk", b.disk, &s.DiskMB}} {
		mb, err := megabytes(size.flag, size.text)
		if err != nil {
			return s, err
		}
		if mb != nil {
			*size.to = *mb
		}
	}
	kind, path, ok := strings.Cut(b.from, ":")
	switch {
	case b.from == "":
		s.Recipe = s.Name
		if !slices.Contains(recipes, s.Recipe) {
			return s, fmt.Errorf("template %s needs a source: --from, or one of the names that need none: %s", s.Name, strings.Join(recipes, ", "))
		}
	case ok && kind == "dir":
		s.Dir = path
	case ok && kind == "tar":
		s.Tar = path
	case ok && kind == "archive":
		s.Archive = path
	case ok && kind == "layout":
		s.Layout = path
	default:
		s.OCI = b.from
	}
	return s, nil
}

// recipes are the templates that this build knows how to make.
var recipes = image.Recipes()

func templateBuildCommand(e *Env) *cobra.Command {
	var b building
	cmd := &cobra.Command{
		Use:   "build NAME[:TAG]",
		Short: "Build a template; base needs no source",
		Long: `Build a template: a read-only root filesystem with the guest agent in it, kept in the data folder.

base is what users of the SDKs expect: bash, Python, Node, curl and git. A build whose result is there already does nothing.

Signatures of a container image by the keys in signatureKeys of the configuration are looked for in its registry, where cosign puts them, and recorded for policies.`,
		Example: "  tartarus template build base\n  tartarus template build web --from nginx:1.27 --memory 512M\n  tartarus template build mine --from dir:./rootfs",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := b.spec(args[0], e.lookup)
			if err != nil {
				return err
			}
			s, err := e.templates()
			if err != nil {
				return err
			}
			c, err := e.configure(nil)
			if err != nil {
				return err
			}
			if spec.Keys, err = c.ImageKeys(); err != nil {
				return err
			}
			p := e.newProgress(time.Now())
			t, err := s.Build(cmd.Context(), spec, func(got image.Progress) { p.report(got, time.Now()) })
			p.finish()
			if err != nil {
				return err
			}
			if e.JSON {
				return e.printJSON(documentOf(t))
			}
			_, err = fmt.Fprintf(e.Stdout, "%s\n", t.Name)
			return err
		},
	}
	b.add(cmd.Flags())
	return cmd
}

// unknownTemplate tells how to get a template that a create did not find.
func unknownTemplate(err error, name string) error {
	if tartarus.Is(err, tartarus.NotFound) && slices.Contains(recipes, name) {
		return fmt.Errorf("%w; `tartarus template build %s` builds it", err, name)
	}
	return err
}
