package main

import (
	"os"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/tartarus-sandbox/tartarus/internal/daemon"
)

const file = "../../docker-compose.yml"

func none(string) (string, bool) { return "", false }

func load(t *testing.T) compose {
	t.Helper()
	c, err := readCompose(file, none)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// known are the variables that the program reads.
func known(v reflect.Type) map[string]bool {
	out := map[string]bool{}
	for i := range v.NumField() {
		f := v.Field(i)
		if env := f.Tag.Get("env"); env != "" {
			out[env] = true
		} else if f.Type.Kind() == reflect.Struct && f.Tag.Get("key") != "" {
			for name := range known(f.Type) {
				out[name] = true
			}
		}
	}
	return out
}

// Every variable of the two daemons is one that the program reads: a misspelt one would be passed over in silence.
func TestVariablesAreKnown(t *testing.T) {
	c, vars := load(t), known(reflect.TypeFor[daemon.Config]())
	for _, name := range []string{"olympus", "hecatoncheir"} {
		for v, value := range c.Services[name].Environment {
			if !vars[v] {
				t.Errorf("%s: %s=%s is no setting of the program", name, v, value)
			}
		}
	}
}

// What is asked of the stack word for word is in it.
func TestWhatTheStackHas(t *testing.T) {
	c := load(t)
	for _, name := range []string{"redis", "minio", "bucket", "olympus", "hecatoncheir"} {
		s, ok := c.Services[name]
		if !ok {
			t.Errorf("there is no service %s", name)
			continue
		}
		if name != "bucket" && len(s.Healthcheck.Test) == 0 {
			t.Errorf("%s has no health check", name)
		}
		if s.Image != "" && (!strings.Contains(s.Image, ":") || strings.HasSuffix(s.Image, ":latest")) {
			t.Errorf("%s: image %s is not pinned", name, s.Image)
		}
	}
	agent := c.Services["hecatoncheir"]
	if !agent.Privileged {
		t.Error("the agent is not privileged: no TAP device could be made")
	}
	for _, name := range []string{"olympus", "hecatoncheir"} {
		if got := c.Services[name].Environment["ENABLE_HYPNOS"]; got != "false" {
			t.Errorf("%s: ENABLE_HYPNOS is %q, want off by default", name, got)
		}
	}
	on, err := readCompose(file, func(name string) (string, bool) { return "true", name == "ENABLE_HYPNOS" })
	if err != nil || on.Services["hecatoncheir"].Environment["ENABLE_HYPNOS"] != "true" {
		t.Errorf("export ENABLE_HYPNOS=true does not reach the agent: %v", err)
	}
}

var hostPort = regexp.MustCompile(`([a-z]+|0\.0\.0\.0):([0-9]{4,5})`)

// Whoever is spoken to listens: every host:port of the file is a port at which that service listens, and every published port too.
func TestPortsAgree(t *testing.T) {
	c := load(t)
	listens := map[string][]string{"redis": {"6379"}, "minio": {"9000", "9001"}}
	for name, s := range c.Services {
		for v, value := range s.Environment {
			if m := hostPort.FindStringSubmatch(value); m != nil && m[1] == "0.0.0.0" && strings.HasSuffix(v, "_ADDR") {
				listens[name] = append(listens[name], m[2])
			}
		}
	}
	for name, s := range c.Services {
		for v, value := range s.Environment {
			for _, m := range hostPort.FindAllStringSubmatch(value, -1) {
				if to, isService := c.Services[m[1]]; isService && !slices.Contains(listens[m[1]], m[2]) {
					t.Errorf("%s: %s=%s, but %s listens at %v (%s)", name, v, value, m[1], listens[m[1]], to.Image)
				}
			}
		}
		for _, p := range s.Ports {
			if inside := p[strings.LastIndexByte(p, ':')+1:]; !slices.Contains(listens[name], inside) {
				t.Errorf("%s publishes %s, but listens at %v", name, p, listens[name])
			}
			if !strings.HasPrefix(p, "127.0.0.1:") {
				t.Errorf("%s publishes %s to the whole network", name, p)
			}
		}
	}
}

// By hand, the same environment: nothing is left of container addresses, and files are in the stack's folder.
func TestByHand(t *testing.T) {
	c := load(t)
	p := place{dir: "/stack", ports: map[string]int{"7300": 17300}}
	for _, name := range []string{"olympus", "hecatoncheir"} {
		s := c.Services[name]
		env := p.environment(s)
		if len(env) != len(s.Environment) {
			t.Errorf("%s: %d of %d variables", name, len(env), len(s.Environment))
		}
		for _, e := range env {
			if v, value, _ := strings.Cut(e, "="); address.MatchString(value) || strings.HasPrefix(value, "/") && !strings.HasPrefix(value, "/stack/") {
				t.Errorf("%s: %s=%s is of the container", name, v, value)
			}
		}
	}
	if got := p.here("0.0.0.0:7300", c.Services["olympus"]); got != "127.0.0.1:17300" {
		t.Errorf("the API's port became %s", got)
	}
	if got := p.here("/join/token", c.Services["hecatoncheir"]); got != "/stack/join/token" {
		t.Errorf("the token's file became %s", got)
	}
}

// The Dockerfile has the targets that the file builds, each of the verb it runs, and copies from this repository alone.
func TestDockerfile(t *testing.T) {
	c := load(t)
	for _, name := range []string{"olympus", "join", "hecatoncheir"} {
		b := c.Services[name].Build
		raw, err := os.ReadFile(filepath.Join("../..", path.Clean(b.Dockerfile)))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(raw), " AS "+b.Target+"\n") || !strings.Contains(string(raw), `CMD ["`+b.Target+`"]`) {
			t.Errorf("%s: the Dockerfile has no target %s that runs it", name, b.Target)
		}
	}
}
