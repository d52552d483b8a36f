package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/tartarus-sandbox/tartarus/internal/daemon"
)

// lookup is an environment of its own.
func lookup(vars map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		v, ok := vars[name]
		return v, ok
	}
}

// configured builds a configuration from a file's text, variables and flags.
func configured(t *testing.T, file string, vars map[string]string, args ...string) (*effective, error) {
	t.Helper()
	dir := t.TempDir()
	if file != "" {
		if err := os.WriteFile(filepath.Join(dir, "config.yaml"), []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	addSettings(flags)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	e := &Env{lookup: lookup(vars), global: global{data: dir}}
	return e.configure(flags)
}

func TestPrecedence(t *testing.T) {
	file := "apiAddr: 127.0.0.1:1\nedgeAddr: 127.0.0.1:2\nlogLevel: warn\n"
	vars := map[string]string{"TARTARUS_EDGE_ADDR": "127.0.0.1:3", "TARTARUS_LOG_LEVEL": "error"}
	c, err := configured(t, file, vars, "--log-level", "debug")
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string][2]string{
		"apiAddr":  {"127.0.0.1:1", "file"},
		"edgeAddr": {"127.0.0.1:3", "env TARTARUS_EDGE_ADDR"},
		"logLevel": {"debug", "flag --log-level"},
		"domain":   {"tartarus.localhost", "default"},
	} {
		s, _ := c.find(key)
		if s.text() != want[0] || s.origin != want[1] {
			t.Errorf("%s: %q from %q, want %q from %q", key, s.text(), s.origin, want[0], want[1])
		}
	}
	if c.APIAddr != "127.0.0.1:1" || c.EdgeAddr != "127.0.0.1:3" || c.LogLevel != "debug" {
		t.Errorf("the configuration itself: %+v", c.Config)
	}
}

func TestFileForms(t *testing.T) {
	c, err := configured(t, `
# a comment
EnableHypnos: true
labels: {tartarus.io/typhon: "yes", zone: a}
limits:
  maxTimeout: 48h
  DEFAULTVCPU: 1
network:
  base: 10.64.0.0/16
  slots: 0
edgeAddr: ""
`, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !c.EnableHypnos || c.Limits.MaxTimeout != 48*time.Hour || c.Limits.DefaultVCPU != 1 || c.Network.Base.String() != "10.64.0.0/16" || c.Network.Slots != 0 || c.EdgeAddr != "" {
		t.Errorf("%+v", c.Config)
	}
	if want := map[string]string{"tartarus.io/typhon": "yes", "zone": "a"}; !reflect.DeepEqual(c.Labels, want) {
		t.Errorf("labels %v", c.Labels)
	}
}

func TestFileIsStrict(t *testing.T) {
	for name, tc := range map[string]struct{ file, want string }{
		"unknown":          {"apiAddr: 127.0.0.1:1\napiPort: 3\n", "line 2: unknown key apiPort"},
		"unknown nested":   {"limits:\n  maxTime: 1h\n", "line 2: unknown key limits.maxTime"},
		"twice":            {"domain: a\nDomain: b\n", "line 2: Domain is set twice"},
		"no number":        {"limits:\n  maxVCPU: many\n", "whole number"},
		"no duration":      {"limits:\n  maxTimeout: 5\n", "no duration such as"},
		"no bool":          {"enableHypnos: maybe\n", "neither true nor false"},
		"a list":           {"- a\n", "expected keys and values"},
		"no mapping":       {"limits: 3\n", "expected keys and values"},
		"no yaml":          {"a: b: c\n", "mapping values"},
		"not valid":        {"logLevel: loud\n", "logLevel"},
		"nested too deep":  {"labels: {a: {b: c}}\n", "nested too deep"},
		"anchors":          {"domain: &x a\nnodeName: *x\n", "aliases"},
		"overflowing":      {"limits: {maxVCPU: 99999999999999999999}\n", "whole number"},
		"label without =":  {"labels: [a]\n", "NAME=VALUE"},
		"prefix with host": {"network: {base: 10.0.0.1/8}\n", "network.base"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := configured(t, tc.file, nil)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestOnlyAnAskedFileMustBeThere(t *testing.T) {
	if _, err := configured(t, "", nil); err != nil {
		t.Fatal(err)
	}
	e := &Env{lookup: lookup(nil), global: global{data: t.TempDir(), config: filepath.Join(t.TempDir(), "absent.yaml")}}
	if _, err := e.configure(nil); err == nil || !strings.Contains(err.Error(), "absent.yaml") {
		t.Fatalf("got %v", err)
	}
}

func TestBadVariablesNameThemselves(t *testing.T) {
	_, err := configured(t, "", map[string]string{"TARTARUS_MAX_VCPU": "x"})
	if err == nil || !strings.Contains(err.Error(), "TARTARUS_MAX_VCPU") {
		t.Fatalf("got %v", err)
	}
}

func TestDataFolder(t *testing.T) {
	for name, tc := range map[string]struct {
		vars map[string]string
		want string
	}{
		"xdg":          {map[string]string{"XDG_DATA_HOME": "/x", "HOME": "/h"}, "/x/tartarus"},
		"home":         {map[string]string{"HOME": "/h"}, "/h/.local/share/tartarus"},
		"relative xdg": {map[string]string{"XDG_DATA_HOME": "x", "HOME": "/h"}, "/h/.local/share/tartarus"},
	} {
		if got := (&Env{lookup: lookup(tc.vars)}).userData(); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
	c, err := (&Env{lookup: lookup(map[string]string{"TARTARUS_DATA": t.TempDir()})}).configure(nil)
	if err != nil || c.origin("dataDir") != "env TARTARUS_DATA" {
		t.Fatalf("%v, %v", c, err)
	}
}

// TestEverySettingCanBeSet: each has a variable, a flag of its own and words that explain it.
func TestEverySettingCanBeSet(t *testing.T) {
	c := daemon.Default()
	flags := map[string]string{}
	for _, s := range settings(&c) {
		if s.env == "" || s.flag == "" {
			t.Errorf("%s has no variable", s.key)
		}
		if other, taken := flags[s.flag]; taken {
			t.Errorf("--%s is both %s and %s", s.flag, other, s.key)
		}
		flags[s.flag] = s.key
		if s.key != "dataDir" && help[s.key] == "" {
			t.Errorf("%s has no help", s.key)
		}
		before := s.text()
		if err := s.set(before, "test"); err != nil || s.text() != before {
			t.Errorf("%s: %q does not survive being set: %q, %v", s.key, before, s.text(), err)
		}
	}
	for key := range help {
		if s, _ := (&effective{settings: settings(&c)}).find(key); s == nil {
			t.Errorf("help for %s, which is no setting", key)
		}
	}
}

func TestSecretsAreNeverPrinted(t *testing.T) {
	v := "e2b_secret"
	s := &setting{key: "password", secret: true, value: reflect.ValueOf(&v).Elem()}
	for _, got := range []string{s.text(), s.yaml()} {
		if strings.Contains(got, "secret") {
			t.Errorf("printed %q", got)
		}
	}
}

// TestConfigPrintsAFile: what config prints can be used as the file, and says the same again.
func TestConfigPrintsAFile(t *testing.T) {
	first, err := configured(t, "", map[string]string{"TARTARUS_LABELS": "a=b c,d=e", "TARTARUS_EDGE_ADDR": "127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	second, err := configured(t, first.yaml(), map[string]string{"TARTARUS_DATA": first.DataDir})
	if err != nil {
		t.Fatalf("%v in\n%s", err, first.yaml())
	}
	a, b := first.Config, second.Config
	a.DataDir, b.DataDir = "", ""
	if !reflect.DeepEqual(a, b) {
		t.Errorf("first %+v\nsecond %+v", a, b)
	}
}

func TestConfigCommand(t *testing.T) {
	var out, errs bytes.Buffer
	e := &Env{Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs, Version: "test", lookup: lookup(map[string]string{"ENABLE_HYPNOS": "true"})}
	if code := e.main(t.Context(), []string{"config", "--json", "--data", t.TempDir(), "--max-vcpu", "4"}); code != 0 {
		t.Fatalf("code %d: %s", code, &errs)
	}
	var doc configDocument
	if err := json.Unmarshal(out.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	got := map[string]configSetting{}
	for _, s := range doc.Settings {
		got[s.Key] = s
	}
	if s := got["enableHypnos"]; s.Value != true || s.Origin != "env ENABLE_HYPNOS" {
		t.Errorf("%+v", s)
	}
	if s := got["limits.maxVCPU"]; s.Value != 4.0 || s.Origin != "flag --max-vcpu" {
		t.Errorf("%+v", s)
	}
}
