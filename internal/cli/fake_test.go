package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testKey = "e2b_0123456789abcdef"

// fakeServer is an API server whose sandboxes are entries of a map.
type fakeServer struct {
	*httptest.Server
	mu        sync.Mutex
	sandboxes map[string]*api.SandboxDetail
	created   []api.NewSandbox
	timeouts  []int64
	base      bool          // whether that template is built
	missing   string        // a template that is not there
	slow      chan struct{} // when set, creates wait for it
	creating  chan struct{} // gets a token when a create has come in
}

func newFakeServer(t *testing.T) *fakeServer {
	f := &fakeServer{sandboxes: map[string]*api.SandboxDetail{}, creating: make(chan struct{}, 8)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) })
	for pattern, h := range map[string]http.HandlerFunc{
		"POST /v2/sandboxes": f.create, "GET /v2/sandboxes": f.list, "GET /sandboxes/{id}": f.get, "DELETE /sandboxes/{id}": f.kill,
		"POST /sandboxes/{id}/timeout": f.timeout, "GET /v2/sandboxes/{id}/logs": f.logs, "GET /sandboxes/{id}/metrics": f.metrics,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get(api.HeaderKey) != testKey {
				refuse(w, 401, "invalid API key")
				return
			}
			h(w, r)
		})
	}
	f.Server = httptest.NewServer(mux)
	t.Cleanup(f.Close)
	return f
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, status int, message string) {
	answer(w, status, api.Error{Code: status, Message: message})
}

func (f *fakeServer) create(w http.ResponseWriter, r *http.Request) {
	var in api.NewSandbox
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		refuse(w, 400, err.Error())
		return
	}
	if f.slow != nil {
		f.creating <- struct{}{}
		<-f.slow
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.created = append(f.created, in)
	if in.TemplateID == "absent" || f.missing != "" && in.TemplateID == f.missing {
		refuse(w, 404, fmt.Sprintf("template %q not found", in.TemplateID))
		return
	}
	alias := in.TemplateID
	if alias == "" {
		if alias = "tiny"; f.base {
			alias = "base"
		}
	}
	id := tartarus.NewID()
	sb := &api.SandboxDetail{EnvdAccessToken: "agent-token", AllowInternetAccess: true}
	sb.SandboxID, sb.TemplateID, sb.Alias, sb.State, sb.Phase = id, "t1", alias, "running", "running"
	sb.StartedAt, sb.EndAt, sb.CPUCount, sb.MemoryMB = time.Now(), time.Now().Add(time.Minute), 2, 512
	sb.Runtime, sb.Tier, sb.Heat, sb.Metadata = "gvisor", "user-kernel", "inferno", in.Metadata
	f.sandboxes[id] = sb
	answer(w, 201, api.Sandbox{SandboxID: id, TemplateID: "t1", Alias: alias, EnvdVersion: tartarus.AgentVersion, EnvdAccessToken: "agent-token"})
}

// held returns the sandbox if it is there, and running unless ended ones are asked for.
func (f *fakeServer) held(w http.ResponseWriter, r *http.Request) *api.SandboxDetail {
	sb := f.sandboxes[r.PathValue("id")]
	if sb == nil || (tartarus.Phase(sb.Phase).Ended() && r.URL.Query().Get("ended") == "") {
		refuse(w, 404, fmt.Sprintf("sandbox %q not found", r.PathValue("id")))
		return nil
	}
	return sb
}

func (f *fakeServer) list(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := []api.ListedSandbox{}
	for _, sb := range f.sandboxes {
		if states := r.URL.Query().Get("state"); !tartarus.Phase(sb.Phase).Ended() || strings.Contains(states, sb.Phase) {
			out = append(out, sb.ListedSandbox)
		}
	}
	slices.SortFunc(out, func(a, b api.ListedSandbox) int { return b.StartedAt.Compare(a.StartedAt) })
	answer(w, 200, out)
}

func (f *fakeServer) get(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if sb := f.held(w, r); sb != nil {
		answer(w, 200, sb)
	}
}

func (f *fakeServer) kill(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if sb := f.held(w, r); sb != nil {
		sb.State, sb.Phase, sb.Reason = "stopped", "stopped", "user"
		w.WriteHeader(204)
	}
}

func (f *fakeServer) timeout(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var in api.TimeoutRequest
	if sb := f.held(w, r); sb != nil && json.NewDecoder(r.Body).Decode(&in) == nil {
		f.timeouts = append(f.timeouts, *in.Timeout)
		sb.EndAt = time.Now().Add(time.Duration(*in.Timeout) * time.Second)
		w.WriteHeader(204)
	}
}

func (f *fakeServer) logs(w http.ResponseWriter, r *http.Request) {
	out := api.Logs{Logs: []api.LogEntry{}}
	if r.URL.Query().Get("cursor") == "" {
		out.Logs = append(out.Logs, api.LogEntry{Timestamp: time.Unix(1, 0), Level: "info", Message: "hello\x1b[2J", Fields: map[string]string{"pid": "3"}})
	}
	answer(w, 200, out)
}

func (f *fakeServer) metrics(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.held(w, r) != nil {
		answer(w, 200, []api.Metric{{Timestamp: time.Unix(1, 0), CPUCount: 2, CPUUsedPct: 12.5, MemUsed: 1 << 20, MemTotal: 1 << 30}})
	}
}

// alive lists the sandboxes that have not ended.
func (f *fakeServer) alive() (out []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, sb := range f.sandboxes {
		if !tartarus.Phase(sb.Phase).Ended() {
			out = append(out, id)
		}
	}
	return out
}

// end lets every sandbox end by itself.
func (f *fakeServer) end(reason tartarus.Reason, message string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, sb := range f.sandboxes {
		sb.State, sb.Phase, sb.Reason, sb.Message = "stopped", "stopped", string(reason), message
	}
}

// fakeGuest keeps files in a folder and runs Go functions as commands.
type fakeGuest struct {
	root     string
	commands map[string]func(p *fakeProcess) // by argv[0]

	mu   sync.Mutex
	runs []command
}

func (g *fakeGuest) file(p string) string { return filepath.Join(g.root, path.Join("/", p)) }

func (g *fakeGuest) Start(ctx context.Context, c command) (process, error) {
	g.mu.Lock()
	g.runs = append(g.runs, c)
	g.mu.Unlock()
	f, ok := g.commands[c.argv[0]]
	if !ok {
		return nil, tartarus.Errorf(tartarus.NotFound, "command '%s' not found in PATH", c.argv[0])
	}
	p := &fakeProcess{command: c, ctx: ctx, reading: make(chan struct{}), events: make(chan event, 64), signals: make(chan syscall.Signal, 8), input: make(chan []byte, 64), sizes: make(chan windowSize, 8)}
	go f(p)
	return p, nil
}

// fakeProcess is a command whose work is a function.
type fakeProcess struct {
	command command
	ctx     context.Context // of its Start
	events  chan event
	signals chan syscall.Signal
	input   chan []byte
	sizes   chan windowSize
	reading chan struct{} // closed when the client has begun to follow it
	begin   sync.Once
	noINT   bool // like an agent that knows only how to terminate and kill
}

func (p *fakeProcess) out(s string) { p.events <- event{stdout: []byte(s)} }
func (p *fakeProcess) exit(code int) {
	p.events <- event{end: &guestclient.Exit{Code: code, Exited: true, Status: fmt.Sprintf("exit status %d", code)}}
}
func (p *fakeProcess) died(sig syscall.Signal) {
	p.events <- event{end: &guestclient.Exit{Code: -1, Status: "signal: " + sig.String()}}
}
func (p *fakeProcess) gone() { close(p.events) }

func (p *fakeProcess) PID() int { return 42 }
func (p *fakeProcess) Next() (event, error) {
	p.begin.Do(func() { close(p.reading) })
	select {
	case ev, ok := <-p.events:
		if !ok {
			return event{}, tartarus.Errorf(tartarus.GuestGone, "the sandbox was not found")
		}
		return ev, nil
	case <-p.ctx.Done():
		return event{}, p.ctx.Err()
	}
}
func (p *fakeProcess) Feed(ctx context.Context, r io.Reader) error {
	buf := make([]byte, 1024)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			select {
			case p.input <- bytes.Clone(buf[:n]):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err != nil {
			return nil
		}
	}
}
func (p *fakeProcess) CloseStdin(context.Context) error { close(p.input); return nil }
func (p *fakeProcess) Resize(_ context.Context, s windowSize) error {
	p.sizes <- s
	return nil
}
func (p *fakeProcess) Signal(_ context.Context, sig syscall.Signal) error {
	if p.noINT && sig == syscall.SIGINT {
		return tartarus.Errorf(tartarus.Invalid, "signal 2 cannot be sent")
	}
	p.signals <- sig
	return nil
}
func (p *fakeProcess) Close() {}

func entryOf(name, p string, info fs.FileInfo) entry {
	return entry{name: name, path: p, mode: info.Mode(), size: info.Size()}
}

func (g *fakeGuest) Stat(_ context.Context, _, p string) (entry, error) {
	info, err := os.Stat(g.file(p))
	if errors.Is(err, fs.ErrNotExist) {
		return entry{}, tartarus.Errorf(tartarus.NotFound, "path %s not found", p)
	}
	if err != nil {
		return entry{}, err
	}
	return entryOf(path.Base(p), path.Join("/", p), info), nil
}

func (g *fakeGuest) List(_ context.Context, _, p string) ([]entry, error) {
	list, err := os.ReadDir(g.file(p))
	var out []entry
	for _, d := range list {
		info, err := d.Info()
		if err != nil {
			return nil, err
		}
		en := entryOf(d.Name(), path.Join("/", p, d.Name()), info)
		en.target, _ = os.Readlink(g.file(path.Join(p, d.Name())))
		out = append(out, en)
	}
	return out, err
}

func (g *fakeGuest) MakeDir(_ context.Context, _, p string) error {
	return os.MkdirAll(g.file(p), 0o755)
}

func (g *fakeGuest) Read(_ context.Context, _, p string) (io.ReadCloser, error) {
	return os.Open(g.file(p))
}

func (g *fakeGuest) Write(_ context.Context, _, p string, content io.Reader) error {
	if err := os.MkdirAll(filepath.Dir(g.file(p)), 0o755); err != nil {
		return err
	}
	f, err := os.Create(g.file(p))
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(f, content)
	return err
}

// fixture is a command line with a server and a guest of its own.
type fixture struct {
	*Env
	server   *fakeServer
	guest    *fakeGuest
	out, err bytes.Buffer
}

func newFixture(t *testing.T) *fixture {
	x := &fixture{server: newFakeServer(t), guest: &fakeGuest{root: t.TempDir(), commands: map[string]func(*fakeProcess){}}}
	x.Env = &Env{Stdin: strings.NewReader(""), Stdout: &x.out, Stderr: &x.err, Version: "test",
		lookup: lookup(map[string]string{"TARTARUS_DATA": t.TempDir(), "TARTARUS_URL": x.server.URL, "TARTARUS_API_KEY": testKey}),
		guest:  func(*client.Guest) guest { return x.guest }}
	return x
}

// run executes a command line.
func (x *fixture) run(t *testing.T, args ...string) int {
	t.Helper()
	code := x.main(t.Context(), args)
	t.Logf("%v: code %d\nstdout: %s\nstderr: %s", args, code, &x.out, &x.err)
	return code
}
