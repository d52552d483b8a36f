package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

func configCommand(e *Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Print the effective configuration and where each value comes from",
		Long: `Print the effective configuration and where each value comes from.

The output is a configuration file: save it as config.yaml in the data folder and change what you like.
Flags win over environment variables, those over the file, and that over the defaults.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := e.configure(cmd.Flags())
			if err != nil {
				return err
			}
			if e.JSON {
				return e.printJSON(c.document())
			}
			_, err = fmt.Fprint(e.Stdout, c.yaml())
			return err
		},
	}
	addSettings(cmd.Flags())
	return cmd
}

// configDocument is what config prints as JSON.
type configDocument struct {
	File     string          `json:"file,omitempty"` // the configuration file that was read
	Settings []configSetting `json:"settings"`
}

type configSetting struct {
	Key    string `json:"key"`
	Value  any    `json:"value"`
	Origin string `json:"origin"` // default, file, "env NAME" or "flag --name"
	Env    string `json:"env"`
}

func (f *effective) document() configDocument {
	out := configDocument{File: f.file}
	for _, s := range f.settings {
		c := configSetting{Key: s.key, Value: s.text(), Origin: s.origin, Env: s.env}
		switch v := s.value.Interface().(type) {
		case bool, int, int64:
			c.Value = v
		case map[string]string:
			c.Value = v
			if v == nil {
				c.Value = map[string]string{}
			}
		}
		out.Settings = append(out.Settings, c)
	}
	return out
}

// yaml writes the configuration as a file, with the origin of each value as a comment behind it.
func (f *effective) yaml() string {
	var lines [][2]string
	section := ""
	for _, s := range f.settings {
		head, name, nested := strings.Cut(s.key, ".")
		indent := ""
		if !nested {
			name = head
		} else {
			if head != section {
				lines = append(lines, [2]string{head + ":"})
				section = head
			}
			indent = "  "
		}
		comment := s.origin
		if comment == "file" {
			comment = f.file
		}
		lines = append(lines, [2]string{indent + name + ": " + s.yaml(), "# " + comment})
	}
	width := 0
	for _, l := range lines {
		width = max(width, min(len(l[0]), 48))
	}
	var b strings.Builder
	for _, l := range lines {
		if l[1] == "" {
			fmt.Fprintln(&b, l[0])
			continue
		}
		fmt.Fprintf(&b, "%-*s  %s\n", width, l[0], l[1])
	}
	return b.String()
}

// yaml is the value as the file has it.
func (s *setting) yaml() string {
	switch v := s.value.Interface().(type) {
	case map[string]string:
		parts := make([]string, 0, len(v))
		for _, name := range sortedKeys(v) {
			parts = append(parts, fmt.Sprintf("%q: %q", name, v[name]))
		}
		return "{" + strings.Join(parts, ", ") + "}"
	case string:
		if s.secret {
			return s.text()
		}
		if v == "" || strings.ContainsAny(v, ":#{}[],&*!|>'\"%@` ") || slices.Contains([]string{"true", "false", "null"}, v) {
			return fmt.Sprintf("%q", v)
		}
		return v
	}
	return s.text()
}
