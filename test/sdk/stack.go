package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// stack is a server of our own with a data folder that lives as long as the run.
type stack struct {
	dir     string // of the run
	data    string // the server's
	results string // one file of results per lane
	api     string // host:port
	edge    string // host:port
	domain  string
	key     string
	run     string // tells this run's sandboxes from others'
	outside *outside
	server  *exec.Cmd
	exited  chan error
	log     string
	failed  atomic.Bool // a lane did, and its log should be looked at
}

// How long the server may take: to build base where nobody did, to answer, and to stop.
const (
	buildTime = 10 * time.Minute
	readyTime = 2 * time.Minute
	stopTime  = 2 * time.Minute
)

// networkBase is a range of its own, so that a server which already runs on this machine keeps its slots.
const networkBase = "198.19.192.0/18"

func startStack(ctx context.Context, o options) (st *stack, err error) {
	dir, err := os.MkdirTemp("", "tartarus-sdk-")
	if err != nil {
		return nil, fmt.Errorf("make folder of the run: %w", err)
	}
	var id [3]byte
	_, _ = rand.Read(id[:])
	st = &stack{dir: dir, data: filepath.Join(dir, "data"), results: filepath.Join(dir, "results"), run: "r" + hex.EncodeToString(id[:]),
		log: filepath.Join(dir, "server.log"), exited: make(chan error, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, st.stop(o))
		}
	}()
	for _, sub := range []string{st.data, st.results} {
		if err := os.Mkdir(sub, 0o700); err != nil {
			return st, fmt.Errorf("make folder of the run: %w", err)
		}
	}
	ports, err := freePorts(2)
	if err != nil {
		return st, err
	}
	st.api, st.edge = "127.0.0.1:"+ports[0], "127.0.0.1:"+ports[1]
	st.domain = "tartarus.localhost:" + ports[1]
	if err := st.templates(ctx, o); err != nil {
		return st, err
	}
	if st.outside, err = makeOutside(ctx, o); err != nil {
		fmt.Printf("         no network stands for the internet, its tests are left out: %v\n", err)
	}
	if err := st.launch(o); err != nil {
		return st, err
	}
	return st, st.ready(ctx)
}

// freePorts finds ports that nobody listens on now.
func freePorts(n int) ([]string, error) {
	var out []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		defer l.Close()
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		out = append(out, port)
	}
	return out, nil
}

// templates builds what the run needs in the data folder that tests and the demo share, which does nothing where that was done before, and
// takes over all templates from there.
func (st *stack) templates(ctx context.Context, o options) error {
	ctx, cancel := context.WithTimeout(ctx, buildTime)
	defer cancel()
	names := []string{"base"}
	for _, l := range choose(o) {
		if l.template != "" && !slices.Contains(names, l.template) {
			names = append(names, l.template)
		}
		if l.pkg == "e2b" && !o.quick && !slices.Contains(names, "mcp-gateway") {
			names = append(names, "mcp-gateway")
		}
	}
	for _, name := range names {
		if err := st.template(ctx, o, name); err != nil {
			return err
		}
	}
	if err := linkTemplates(filepath.Join(o.templates, "templates"), filepath.Join(st.data, "templates")); err != nil {
		return fmt.Errorf("take over templates: %w", err)
	}
	return nil
}

// template builds one of the templates that the program has a recipe for.
func (st *stack) template(ctx context.Context, o options, name string) error {
	if !hasTemplate(o.templates, name) {
		fmt.Printf("         building the template %s in %s\n", name, o.templates)
	}
	cmd := exec.CommandContext(ctx, o.bin, "template", "build", name)
	cmd.Env = append(st.serverEnv(), "TARTARUS_DATA="+o.templates)
	inOwnGroup(cmd)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build template %s: %w\n%s", name, err, out.Bytes())
	}
	return nil
}

// linkTemplates takes over the templates of another data folder. Images never change, so that links share them.
func linkTemplates(from, to string) error {
	index, err := os.ReadFile(filepath.Join(from, "templates.json"))
	if err != nil {
		return err
	}
	images, err := filepath.Glob(filepath.Join(from, "images", "*"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(to, "images"), 0o700); err != nil {
		return err
	}
	for _, image := range images {
		if err := os.Link(image, filepath.Join(to, "images", filepath.Base(image))); err != nil {
			// Another disk: the copy shares blocks where the file system can.
			if out, err := exec.Command("cp", "--reflink=auto", image, filepath.Join(to, "images")).CombinedOutput(); err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
		}
	}
	return os.WriteFile(filepath.Join(to, "templates.json"), index, 0o600)
}

// hasTemplate tells whether a template is built in a data folder.
func hasTemplate(data, name string) bool {
	raw, err := os.ReadFile(filepath.Join(data, "templates", "templates.json"))
	if err != nil {
		return false
	}
	var index struct{ Templates []struct{ Name string } }
	if err := json.Unmarshal(raw, &index); err != nil {
		return false
	}
	return slices.ContainsFunc(index.Templates, func(t struct{ Name string }) bool { return t.Name == name })
}

func (st *stack) serverEnv() []string {
	env := []string{
		"TARTARUS_DATA=" + st.data, "TARTARUS_API_ADDR=" + st.api, "TARTARUS_EDGE_ADDR=" + st.edge, "TARTARUS_DOMAIN=" + st.domain,
		"TARTARUS_NETWORK_BASE=" + networkBase, "TARTARUS_NODE_NAME=sdk-" + st.run,
	}
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "LANG"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

func (st *stack) launch(o options) error {
	log, err := os.Create(st.log)
	if err != nil {
		return fmt.Errorf("make server log: %w", err)
	}
	defer log.Close()
	trust, err := st.trustEnv()
	if err != nil {
		return err
	}
	st.server = exec.Command(o.bin, "up")
	st.server.Env, st.server.Dir = append(st.serverEnv(), trust...), st.dir
	st.server.Stdout, st.server.Stderr = log, log
	st.server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := st.server.Start(); err != nil {
		st.server = nil
		return fmt.Errorf("start server: %w", err)
	}
	go func() { st.exited <- st.server.Wait() }()
	return nil
}

// ready waits until sandboxes can be made, and reads the key.
func (st *stack) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	for {
		res, err := st.ask(ctx, "GET", "/readyz")
		if err == nil && res.StatusCode == http.StatusOK {
			break
		}
		select {
		case err := <-st.exited:
			st.exited <- err
			return fmt.Errorf("start server: it ended: %w\n%s", err, tail(st.log))
		case <-ctx.Done():
			return fmt.Errorf("start server: not ready within %s\n%s", readyTime, tail(st.log))
		case <-time.After(100 * time.Millisecond):
		}
	}
	raw, err := os.ReadFile(filepath.Join(st.data, "admin.key"))
	if err != nil {
		return fmt.Errorf("read admin key: %w", err)
	}
	st.key = strings.TrimSpace(string(raw))
	return nil
}

func (st *stack) describe() string {
	return "API " + st.api + ", edge " + st.edge + ", folder " + st.dir
}

// clientEnv is all that a lane gets to know.
func (st *stack) clientEnv(o options, l lane) []string {
	home := filepath.Join(st.dir, "home-"+l.name)
	_ = os.MkdirAll(home, 0o700)
	env := []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + home, "LANG=C.UTF-8", "TMPDIR=" + home, "PYTHONDONTWRITEBYTECODE=1", "NO_COLOR=1",
		"E2B_API_URL=http://" + st.api, "E2B_SANDBOX_URL=http://" + st.api, "E2B_API_KEY=" + st.key, "E2B_DOMAIN=" + st.domain, "E2B_VOLUME_API_URL=http://" + st.api,
		"LANE_NAME=" + l.name, "LANE_PACKAGE=" + l.pkg, "LANE_MODE=" + l.mode, "LANE_RUN=" + st.run, "LANE_TEMPLATE=base",
		"LANE_RESULTS=" + filepath.Join(st.results, l.name+".jsonl"), "LANE_EDGE=" + st.edge, "LANE_DOMAIN=" + st.domain,
		"LANE_CA=" + st.ca(), "LANE_REGISTER=" + filepath.Join(o.root, "test/sdk/methods.json"), "LANE_BIN=" + o.bin,
		"TARTARUS_DATA=" + st.data, "TARTARUS_URL=http://" + st.api, fmt.Sprintf("LANE_SERVER_PID=%d", st.server.Process.Pid),
	}
	if st.outside != nil {
		env = append(env, "LANE_OUTSIDE="+strings.Join(st.outside.addresses, " "))
	}
	env = append(env, st.serviceEnv()...)
	if o.quick {
		env = append(env, "LANE_QUICK=1")
	}
	if seed, ok := os.LookupEnv("SCHEMATHESIS_SEED"); ok {
		env = append(env, "SCHEMATHESIS_SEED="+seed)
	}
	return env
}

// ca is the certificate that signed the edge's, if there is one.
func (st *stack) ca() string {
	if path := filepath.Join(st.data, "ca", "ca.pem"); fileExists(path) {
		return path
	}
	return ""
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// mark notes in a lane's results that the lane did not come to its end.
func (st *stack) mark(l lane, why string) {
	st.failed.Store(true)
	line, _ := json.Marshal(result{Kind: "test", Name: "(the lane)", Outcome: "fail", Reason: why})
	f, err := os.OpenFile(filepath.Join(st.results, l.name+".jsonl"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	_, _ = f.Write(append(line, '\n'))
}

func (st *stack) ask(ctx context.Context, method, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+st.api+path, nil)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", path, err)
	}
	req.Header.Set("X-API-KEY", st.key)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	res.Body.Close()
	res.Body = io.NopCloser(bytes.NewReader(raw))
	return res, err
}

// stop ends the sandboxes that tests left, then the server, and looks for anything it left on the host.
func (st *stack) stop(o options) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	var errs []error
	if st.server != nil {
		errs = append(errs, st.endSandboxes(ctx), st.endServer(ctx), st.faults(), st.leaks(ctx, o))
	}
	errs = append(errs, st.outside.remove(ctx))
	if err := errors.Join(errs...); err != nil || o.keep || st.failed.Load() {
		fmt.Printf("         left for a look: %s\n", st.dir)
		return err
	}
	if err := os.RemoveAll(st.dir); err != nil {
		return fmt.Errorf("remove folder of the run: %w", err)
	}
	return nil
}

// endSandboxes kills what still runs. Tests that were cut off leave some, and generated requests may have put some into quarantine, which are
// not killed but destroyed.
func (st *stack) endSandboxes(ctx context.Context) error {
	for range 20 {
		res, err := st.ask(ctx, "GET", "/v2/sandboxes?limit=100")
		if err != nil {
			return fmt.Errorf("list sandboxes at the end: %w", err)
		}
		if res.StatusCode != http.StatusOK {
			said, _ := io.ReadAll(res.Body)
			return fmt.Errorf("list sandboxes at the end: %s %s", res.Status, said)
		}
		var listed []struct{ SandboxID string }
		if err := json.NewDecoder(res.Body).Decode(&listed); err != nil {
			return fmt.Errorf("list sandboxes at the end: %w", err)
		}
		if len(listed) == 0 {
			return nil
		}
		for _, sb := range listed {
			res, err := st.ask(ctx, "DELETE", "/sandboxes/"+sb.SandboxID)
			if err == nil && res.StatusCode == http.StatusConflict {
				_, err = st.ask(ctx, "DELETE", "/quarantine/"+sb.SandboxID)
			}
			if err != nil {
				return fmt.Errorf("end sandbox %s: %w", sb.SandboxID, err)
			}
		}
	}
	return errors.New("end sandboxes: there are always more")
}

// endServer asks the server to stop. That it does so in time and with success is part of what is tested.
func (st *stack) endServer(ctx context.Context) error {
	_ = st.server.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-st.exited:
		if err != nil {
			return fmt.Errorf("stop server: %w\n%s", err, tail(st.log))
		}
		return nil
	case <-ctx.Done():
		_ = syscall.Kill(-st.server.Process.Pid, syscall.SIGKILL)
		<-st.exited
		return fmt.Errorf("stop server: still there after %s\n%s", stopTime, tail(st.log))
	}
}

// faults looks for what must not be in a log: a panic that was caught is still a fault.
func (st *stack) faults() error {
	raw, err := os.ReadFile(st.log)
	if err != nil {
		return fmt.Errorf("read server log: %w", err)
	}
	var found []string
	for line := range strings.Lines(string(raw)) {
		if strings.Contains(line, "panic") && !slices.Contains(found, line) {
			found = append(found, strings.TrimSpace(line))
		}
	}
	if len(found) > 0 {
		return fmt.Errorf("the server's log has %d lines about a panic, the first: %s", len(found), found[0])
	}
	return nil
}

// leaks asks doctor whether anything of ours is left that no sandbox owns.
func (st *stack) leaks(ctx context.Context, o options) error {
	cmd := exec.CommandContext(ctx, o.bin, "doctor", "--leaks")
	cmd.Env = st.serverEnv()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("doctor --leaks: %w\n%s", err, out)
	}
	return nil
}

// tail is the end of a file, for an error message.
func tail(path string) []byte {
	raw, err := os.ReadFile(path)
	if err != nil {
		return []byte(err.Error())
	}
	return raw[max(0, len(raw)-3000):]
}
