package main

import (
	"fmt"
	"os"
	"path"
	"regexp"
	"strings"

	"gopkg.in/yaml.v3"
)

// compose is what this program needs of docker-compose.yml.
type compose struct {
	Services map[string]service `yaml:"services"`
}

// service is one process of the stack.
type service struct {
	Command     []string          `yaml:"command"`
	Environment map[string]string `yaml:"environment"`
	Ports       []string          `yaml:"ports"`
	Volumes     []string          `yaml:"volumes"`
	Privileged  bool              `yaml:"privileged"`
	Healthcheck struct {
		Test []string `yaml:"test"`
	} `yaml:"healthcheck"`
	Build struct {
		Dockerfile string `yaml:"dockerfile"`
		Target     string `yaml:"target"`
	} `yaml:"build"`
	Image string `yaml:"image"`
}

// variable is ${NAME} or ${NAME:-default}, the two forms that the file uses.
var variable = regexp.MustCompile(`\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}`)

// readCompose reads the file with the variables of the environment put in.
func readCompose(file string, lookup func(string) (string, bool)) (compose, error) {
	var c compose
	raw, err := os.ReadFile(file)
	if err != nil {
		return c, err
	}
	text := variable.ReplaceAllStringFunc(string(raw), func(found string) string {
		m := variable.FindStringSubmatch(found)
		if v, ok := lookup(m[1]); ok && v != "" {
			return v
		}
		return m[2]
	})
	if err := yaml.Unmarshal([]byte(text), &c); err != nil {
		return c, fmt.Errorf("read %s: %w", file, err)
	}
	return c, nil
}

// place is where something of a container is when it runs by hand.
type place struct {
	dir   string         // the stack's folder; each named volume is a folder in it
	ports map[string]int // port in the file to port on this host; missing is the same one
}

// address is a host name of the file with its port, or an address to listen on.
var address = regexp.MustCompile(`\b(redis|minio|olympus|hecatoncheir|0\.0\.0\.0):([0-9]{2,5})\b`)

// here turns a value of a container's environment into one for this host: other services are on loopback, and volumes are folders.
func (p place) here(value string, s service) string {
	value = address.ReplaceAllStringFunc(value, func(found string) string {
		port := found[strings.LastIndexByte(found, ':')+1:]
		return "127.0.0.1:" + p.port(port)
	})
	for _, v := range s.Volumes {
		name, inside, _ := strings.Cut(v, ":")
		inside, _, _ = strings.Cut(inside, ":")
		if strings.HasPrefix(value, inside+"/") && !strings.HasPrefix(name, ".") {
			return path.Join(p.dir, name, strings.TrimPrefix(value, inside))
		}
	}
	return value
}

func (p place) port(text string) string {
	var n int
	if _, err := fmt.Sscan(text, &n); err == nil {
		if mapped, ok := p.ports[text]; ok {
			return fmt.Sprint(mapped)
		}
	}
	return text
}

// environment is a service's, as variables of a process on this host.
func (p place) environment(s service) []string {
	var out []string
	for name, value := range s.Environment {
		out = append(out, name+"="+p.here(value, s))
	}
	return out
}
