package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// lane is one release of one package driven through one set of tests.
type lane struct {
	name     string
	title    string // head of its column in the table; empty for lanes that have none
	tool     string // pytest, node or schemathesis
	pkg      string // rows of methods.json that it must have; empty for none
	pins     string // what is installed for it
	extra    string // further pins whose programs it uses
	folder   string // its tests, below test/sdk
	mode     string // sync or async
	template string // runs only where this template is built
	quick    bool   // part of the quick run
	alone    bool   // its load would disturb others
	limit    time.Duration
}

// lanes is all there is to run, in the order of the table's columns. The limits are about three times what two cores need.
var lanes = []lane{
	{name: "python-newest-sync", title: "Python sync", tool: "pytest", pkg: "e2b", pins: "python-newest.txt", folder: "python/sdk", mode: "sync", quick: true, limit: 8 * time.Minute},
	{name: "python-newest-async", title: "Python async", tool: "pytest", pkg: "e2b", pins: "python-newest.txt", folder: "python/sdk", mode: "async", limit: 8 * time.Minute},
	{name: "python-older-sync", title: "Python sync", tool: "pytest", pkg: "e2b", pins: "python-older.txt", folder: "python/sdk", mode: "sync", limit: 8 * time.Minute},
	{name: "python-older-async", title: "Python async", tool: "pytest", pkg: "e2b", pins: "python-older.txt", folder: "python/sdk", mode: "async", limit: 8 * time.Minute},
	{name: "js-newest", title: "JavaScript", tool: "node", pkg: "e2b", pins: "js-newest", folder: "js/sdk", quick: true, limit: 8 * time.Minute},
	{name: "js-older", title: "JavaScript", tool: "node", pkg: "e2b", pins: "js-older", folder: "js/sdk", limit: 8 * time.Minute},
	{name: "cli", title: "command line", tool: "pytest", pkg: "cli", pins: "python-newest.txt", extra: "cli", folder: "python/cli", mode: "sync", limit: 4 * time.Minute},
	{name: "code-python-sync", title: "Python sync", tool: "pytest", pkg: "code-interpreter", pins: "python-newest.txt", folder: "python/code", mode: "sync", template: "code-interpreter", limit: 4 * time.Minute},
	{name: "code-python-async", title: "Python async", tool: "pytest", pkg: "code-interpreter", pins: "python-newest.txt", folder: "python/code", mode: "async", template: "code-interpreter", limit: 4 * time.Minute},
	{name: "code-js", title: "JavaScript", tool: "node", pkg: "code-interpreter", pins: "js-newest", folder: "js/code", template: "code-interpreter", limit: 4 * time.Minute},
	{name: "domain", tool: "pytest", pins: "python-newest.txt", extra: "js-newest", folder: "python/domain", mode: "sync", limit: 2 * time.Minute},
	{name: "bad-input", tool: "pytest", pins: "python-newest.txt", folder: "python/bad", mode: "sync", alone: true, limit: 8 * time.Minute},
	{name: "schemathesis", tool: "schemathesis", pins: "schemathesis.txt", alone: true, limit: 3 * time.Minute},
}

func laneNames() []string {
	var out []string
	for _, l := range lanes {
		out = append(out, l.name)
	}
	return out
}

// choose picks the lanes of this run.
func choose(o options) []lane {
	var out []lane
	for _, l := range lanes {
		asked := len(o.only) == 0 || slices.ContainsFunc(o.only, func(s string) bool { return strings.HasPrefix(l.name, s) })
		if asked && (l.quick || !o.quick) {
			out = append(out, l)
		}
	}
	return out
}

// runLanes runs those that may share the machine first, a few at a time, then each of the others by itself.
func runLanes(ctx context.Context, o options, st *stack, envs map[string]env, chosen []lane, start time.Time) {
	places := make(chan struct{}, max(1, o.parallel))
	var group sync.WaitGroup
	for _, l := range chosen {
		if l.alone {
			continue
		}
		places <- struct{}{}
		group.Go(func() {
			defer func() { <-places }()
			step(start, fmt.Sprintf("%-20s %s", l.name, runLane(ctx, o, st, envs, l)))
		})
	}
	group.Wait()
	for _, l := range chosen {
		if l.alone {
			step(start, fmt.Sprintf("%-20s %s", l.name, runLane(ctx, o, st, envs, l)))
		}
	}
}

// runLane runs the tests of one lane and says in a few words how they went. What they found is in the results.
func runLane(ctx context.Context, o options, st *stack, envs map[string]env, l lane) string {
	if ctx.Err() != nil {
		return "not run"
	}
	if l.template != "" && !hasTemplate(st.data, l.template) {
		return "skipped: the template " + l.template + " is not built"
	}
	ctx, cancel := context.WithTimeout(ctx, l.limit)
	defer cancel()
	began := time.Now()
	cmd := command(ctx, o, st, envs, l)
	log, err := os.Create(filepath.Join(st.dir, l.name+".log"))
	if err != nil {
		return err.Error()
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(cmd.Env, st.clientEnv(o, l)...)
	inOwnGroup(cmd)
	err = cmd.Run()
	took := time.Since(began).Round(time.Second)
	switch exit := (*exec.ExitError)(nil); {
	case ctx.Err() != nil:
		// The mark keeps judge from taking what was not run for what is not there.
		st.mark(l, fmt.Sprintf("stopped after %s", took))
		return fmt.Sprintf("stopped after %s, log %s", took, log.Name())
	case errors.As(err, &exit):
		st.mark(l, fmt.Sprintf("its tests ended with code %d", exit.ExitCode()))
		return fmt.Sprintf("failed in %s, log %s", took, log.Name())
	case err != nil:
		st.mark(l, err.Error())
		return err.Error()
	}
	return fmt.Sprintf("passed in %s", took)
}

// command is how the tests of a lane are started.
func command(ctx context.Context, o options, st *stack, envs map[string]env, l lane) *exec.Cmd {
	base, tests := filepath.Join(o.root, "test/sdk"), filepath.Join(o.root, "test/sdk", l.folder)
	e := envs[l.pins]
	var cmd *exec.Cmd
	switch l.tool {
	case "pytest":
		cmd = exec.CommandContext(ctx, e.python, "-m", "pytest", "-c", filepath.Join(base, "python/pytest.ini"), "--rootdir", filepath.Join(base, "python"), tests)
	case "node":
		files, _ := filepath.Glob(filepath.Join(tests, "*.test.mjs"))
		slices.Sort(files)
		cmd = exec.CommandContext(ctx, e.node, append([]string{"--test", "--test-concurrency=1", "--test-reporter=spec"}, files...)...)
		cmd.Env = append(cmd.Env, "LANE_MODULES="+filepath.Join(e.dir, "node_modules"))
	default:
		cmd = exec.CommandContext(ctx, e.python, filepath.Join(base, "schema.py"), filepath.Join(o.root, "api/openapi.yaml"))
	}
	cmd.Dir = st.dir
	if x := envs[l.extra]; l.extra != "" {
		cmd.Env = append(cmd.Env, "LANE_NODE="+x.node, "LANE_MODULES="+filepath.Join(x.dir, "node_modules"))
	}
	return cmd
}

// inOwnGroup makes the end of a command the end of everything it started.
func inOwnGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
}
