package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/websocket"

	"github.com/tartarus-sandbox/tartarus/api"
)

// drowsy is a server that puts sandboxes to sleep soon.
func drowsy(t *testing.T, vars ...string) *server {
	return newServer(t, append(vars, "ENABLE_HYPNOS=true", "TARTARUS_HYPNOS_IDLE_AFTER=3s", "TARTARUS_HYPNOS_MIN_AGE=1s", "TARTARUS_WARM_MEMORY=0")...)
}

// serve runs the program served in a sandbox, in the background, and returns once it answers.
func (s *server) serve(sb *api.Sandbox) {
	s.t.Helper()
	served := filepath.Join(s.t.TempDir(), "served")
	cmd := exec.CommandContext(s.t.Context(), "go", "build", "-o", served, "./testdata/served")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("build served: %v\n%s", err, out)
	}
	if out, code := s.cli("cp", served, sb.SandboxID+":/tmp/served"); code != 0 {
		s.t.Fatalf("cp: %s", out)
	}
	s.sh(sb.SandboxID, "chmod 755 /tmp/served; /tmp/served >/dev/null 2>&1 </dev/null &")
	eventually(s.t, 30*time.Second, func() error { _, err := s.askServed(sb); return err })
}

// askServed sends a request to the program served and returns what it says.
func (s *server) askServed(sb *api.Sandbox) (string, error) {
	g := s.Guest(sb)
	res, err := g.HTTPClient(8080).Get(g.BaseURL() + "/")
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != 200 {
		err = fmt.Errorf("status %d: %s", res.StatusCode, text)
	}
	return strings.TrimSpace(string(text)), err
}

// throughEdge is a client that finds every name at the edge, and trusts the authority that the server made for itself.
func (s *server) throughEdge(edge string) *http.Client {
	s.t.Helper()
	raw, err := os.ReadFile(filepath.Join(s.data, "ca", "ca.pem"))
	roots := x509.NewCertPool()
	if err != nil || !roots.AppendCertsFromPEM(raw) {
		s.t.Fatalf("no authority of the edge: %v", err)
	}
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", edge)
		},
		DisableKeepAlives: true, // an open connection would keep it awake
	}
	return &http.Client{Transport: tr, Timeout: time.Minute}
}

// dialEcho opens a WebSocket to the program served.
func (s *server) dialEcho(sb *api.Sandbox) (*websocket.Conn, error) {
	c, err := websocket.NewConfig("ws://"+s.addr+"/echo", "http://"+s.addr)
	if err != nil {
		return nil, err
	}
	c.Header.Set(api.HeaderSandbox, sb.SandboxID)
	c.Header.Set(api.HeaderPort, "8080")
	return websocket.DialConfig(c)
}

func (s *server) asleep(id string) error {
	sb, err := s.Get(s.t.Context(), id)
	if err == nil && (sb.Phase != "paused" || sb.Reason != "idle") {
		err = fmt.Errorf("it is %s because of %q", sb.Phase, sb.Reason)
	}
	return err
}

// sleeps waits until a sandbox is hibernated.
func (s *server) sleeps(id string) {
	s.t.Helper()
	eventually(s.t, 2*time.Minute, func() error { return s.asleep(id) })
}

// TestHibernateAndWake lets a sandbox with a server and a counter fall asleep and wakes it in every way there is: what waits for it succeeds, and
// nothing in it has noticed.
func TestHibernateAndWake(t *testing.T) {
	edge := freeAddr(t)
	s := drowsy(t, "TARTARUS_EDGE_ADDR="+edge)
	sb := s.create()
	id := sb.SandboxID
	s.serve(sb)
	if s.processes() == 0 {
		t.Fatal("no sandbox process is found although one runs: the count below would prove nothing")
	}
	s.sh(id, "(i=0; while true; do i=$((i+1)); echo $i > /tmp/count; sleep 1; done) >/dev/null 2>&1 </dev/null &")
	first, err := s.askServed(sb)
	if err != nil {
		t.Fatal(err)
	}
	pid, _, _ := strings.Cut(first, " ")
	asked := 0
	_, _ = fmt.Sscanf(first, pid+" %d", &asked)

	one := func() error {
		got, err := s.askServed(sb)
		if err == nil && !strings.HasPrefix(got, pid+" ") {
			err = fmt.Errorf("process %s answered %q", pid, got)
		}
		return err
	}
	for _, way := range []struct {
		name string
		wake func() error
	}{
		{"http", one},
		{"https by the sandbox's own name", func() error {
			res, err := s.throughEdge(edge).Get("https://8080-" + id + ".tartarus.localhost/")
			if err != nil {
				return err
			}
			defer res.Body.Close()
			if text, err := io.ReadAll(res.Body); err != nil || res.StatusCode != http.StatusOK || !strings.HasPrefix(string(text), pid+" ") {
				return fmt.Errorf("status %d: %s, %v", res.StatusCode, text, err)
			}
			return nil
		}},
		{"websocket", func() error {
			c, err := s.dialEcho(sb)
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := io.WriteString(c, "hello"); err != nil {
				return err
			}
			got := make([]byte, 5)
			if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
				return fmt.Errorf("echoed %q, %v", got, err)
			}
			return nil
		}},
		{"exec", func() error {
			if out, code := s.cli("exec", id, "--", "echo", "hi"); code != 0 || out != "hi\n" {
				return fmt.Errorf("exit code %d: %s", code, out)
			}
			return nil
		}},
		{"api", func() error { return s.SetTimeout(t.Context(), id, 10*time.Minute) }},
		{"connect", func() error { _, err := s.Connect(t.Context(), id, 10*time.Minute); return err }},
		{"many at once", func() error {
			errs := make([]error, 20)
			var all sync.WaitGroup
			for i := range errs {
				all.Go(func() { errs[i] = one() })
			}
			all.Wait()
			return errors.Join(errs...)
		}},
	} {
		s.sleeps(id)
		if n := s.processes(); n != 0 {
			t.Errorf("%s: %d sandbox processes although it sleeps", way.name, n)
		}
		before := strings.Count(s.log.String(), "sandbox woken")
		if err := way.wake(); err != nil {
			t.Fatalf("%s: %v\n%s", way.name, err, s.log)
		}
		if sb, err := s.Get(t.Context(), id); err != nil || sb.State != "running" || sb.Reason != "" {
			t.Errorf("%s: afterwards it is %+v, %v", way.name, sb, err)
		}
		if n := strings.Count(s.log.String(), "sandbox woken") - before; n > 1 {
			t.Errorf("%s: it woke %d times", way.name, n)
		}
	}
	if err := one(); err != nil {
		t.Error(err)
	}
	count := s.count(id)
	eventually(t, 30*time.Second, func() error { return differs("the count", strconv.Itoa(count), strconv.Itoa(s.count(id))) })
}

// TestStaysAwake holds what is not idle, however quiet it is from outside.
func TestStaysAwake(t *testing.T) {
	s := drowsy(t)
	no := false
	awake := map[string]string{
		"a command runs":    s.create().SandboxID,
		"it computes":       s.create().SandboxID,
		"it must":           s.create(func(n *api.NewSandbox) { n.Hibernate = &no }).SandboxID,
		"its metadata says": s.create(func(n *api.NewSandbox) { n.Metadata = map[string]string{"tartarus.io/hypnos": "never"} }).SandboxID,
	}
	if out, code := s.cli("exec", "-d", awake["a command runs"], "--", "sleep", "1000"); code != 0 {
		t.Fatal(out)
	}
	s.sh(awake["it computes"], "(while :; do :; done) >/dev/null 2>&1 </dev/null &")
	connected := s.create()
	s.serve(connected)
	c, err := s.dialEcho(connected)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	awake["somebody is connected"] = connected.SandboxID
	// One that nothing keeps awake says when the others have had their time.
	witness := s.create().SandboxID
	s.sleeps(witness)
	time.Sleep(8 * time.Second) // longer than idle time and measurement together
	for why, id := range awake {
		if sb, err := s.Get(t.Context(), id); err != nil || sb.State != "running" {
			t.Errorf("%s: %+v, %v", why, sb, err)
		}
	}
}

// TestHibernatedKeepsItsTime holds that the time of a sandbox runs while it sleeps: it ends, or is paused for good, when it is up; and that a pause that
// somebody asks for is one.
func TestHibernatedKeepsItsTime(t *testing.T) {
	s := drowsy(t)
	yes := true
	ends, pauses, paused := s.create(), s.create(func(n *api.NewSandbox) { n.AutoPause = &yes }), s.create()
	for _, sb := range []*api.Sandbox{ends, pauses, paused} {
		s.sh(sb.SandboxID, "echo kept > /home/user/name")
	}
	for _, sb := range []*api.Sandbox{ends, pauses, paused} {
		s.sleeps(sb.SandboxID)
	}
	if err := s.Pause(t.Context(), paused.SandboxID); err != nil {
		t.Fatal(err)
	}
	// Setting the time wakes; it is short enough to be up while they sleep again.
	for _, sb := range []*api.Sandbox{ends, pauses} {
		if err := s.SetTimeout(t.Context(), sb.SandboxID, 40*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	for _, sb := range []*api.Sandbox{ends, pauses} {
		s.sleeps(sb.SandboxID)
	}
	s.ended(ends.SandboxID, "timeout")
	for _, sb := range []*api.Sandbox{pauses, paused} {
		id := sb.SandboxID
		eventually(t, 60*time.Second, func() error {
			d, err := s.Get(t.Context(), id)
			if err == nil && (d.State != "paused" || d.Reason != "") {
				err = fmt.Errorf("it is %s because of %q", d.Phase, d.Reason)
			}
			return err
		})
		if _, code := s.cli("exec", id, "--", "true"); code == 0 {
			t.Error("traffic woke a sandbox that is paused for good")
		}
		if _, err := s.Connect(t.Context(), id, time.Minute); err != nil {
			t.Fatal(err)
		}
		if got := s.sh(id, "cat /home/user/name"); got != "kept" {
			t.Errorf("it holds %q", got)
		}
	}
}

// processes counts the sandbox processes of this server.
func (s *server) processes() (n int) {
	all, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, link := range all {
		exe, err := os.Readlink(link)
		pid := filepath.Base(filepath.Dir(link))
		if err != nil || exe != s.bin || pid == strconv.Itoa(s.cmd.Process.Pid) {
			continue
		}
		// Of other servers' there may be some: ours have a folder below our data folder in their arguments or files.
		if args, _ := os.ReadFile("/proc/" + pid + "/cmdline"); strings.Contains(string(args), s.data) {
			n++
		}
	}
	return n
}

// sleepers is how many sandboxes sleep at once in TestManySleepers. 200 need 5 GB of memory while they are made, a batch at a time.
func sleepers(t *testing.T) int {
	text := os.Getenv("TARTARUS_E2E_SLEEPERS")
	if text == "" {
		return 12
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("TARTARUS_E2E_SLEEPERS=%q is no number", text)
	}
	return n
}

// TestManySleepers holds that hibernated sandboxes cost disk only, also across a killed server, and that each of them wakes with what it had.
func TestManySleepers(t *testing.T) {
	s := drowsy(t, "TARTARUS_HYPNOS_AT_ONCE=4", "GOGC=50") // little garbage, so that what is counted is in use
	n := sleepers(t)
	ids := make([]string, n)
	before := s.resident()
	hour := int64(3600)
	each := func(do func(i int)) {
		var group sync.WaitGroup
		hands := make(chan struct{}, 4)
		for i := range n {
			hands <- struct{}{}
			group.Go(func() {
				defer func() { <-hands }()
				do(i)
			})
		}
		group.Wait()
	}
	each(func(i int) {
		sb := s.create(func(in *api.NewSandbox) { in.Timeout = &hour })
		ids[i] = sb.SandboxID
		s.sh(sb.SandboxID, fmt.Sprintf("echo mine-%d > /dev/shm/name 2>/dev/null || echo mine-%d > /tmp/name; echo disk-%d > /home/user/name", i, i, i))
	})
	for _, id := range ids {
		s.sleeps(id)
	}
	if left := s.processes(); left != 0 {
		t.Errorf("%d sandbox processes although all %d sleep", left, n)
	}
	if got := s.metric("tartarus_node_hibernated_sandboxes"); got != float64(n) {
		t.Errorf("the metrics say that %v sleep, not %d", got, n)
	}
	if got := s.metric("tartarus_node_hibernated_memory_bytes"); got < float64(n)*(1<<20) {
		t.Errorf("the metrics say that %v bytes are saved by %d sandboxes", got, n)
	}
	if left := len(s.machines()); left != 0 {
		t.Errorf("%d machines although all %d sleep", left, n)
	}
	disk, memory := s.folderBytes("snapshots")/int64(n), (s.resident()-before)/int64(n)
	t.Logf("%d sandboxes asleep: %d processes, %d MB of disk each, %d KB of the server's memory each", n, s.processes(), disk>>20, memory>>10)
	// A server that has done its first work holds some megabytes more than one that has done none, whatever sleeps there.
	const atWork, record = 24 << 20, 128 << 10
	if disk > 64<<20 || memory*int64(n) > atWork+record*int64(n) {
		t.Error("that is more than their own memory and files, and a record of each")
	}
	s.kill()
	s.start()
	for _, id := range ids {
		if err := s.asleep(id); err != nil {
			t.Errorf("after a killed server: %v", err)
		}
	}
	each(func(i int) {
		if got := s.sh(ids[i], "cat /dev/shm/name 2>/dev/null || cat /tmp/name; cat /home/user/name"); got != fmt.Sprintf("mine-%d\ndisk-%d", i, i) {
			t.Errorf("sandbox %d holds %q", i, got)
		}
	})
	if got := s.metric(`tartarus_wakes_total{result="ok"}`); got < float64(n) {
		t.Errorf("the metrics count %v wakes of %d sandboxes", got, n)
	}
}

// folderBytes is what a folder of the server's data takes on disk.
func (s *server) folderBytes(name string) (n int64) {
	s.t.Helper()
	err := filepath.WalkDir(filepath.Join(s.data, name), func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if st, ok := info.Sys().(*syscall.Stat_t); err == nil && ok {
			n += st.Blocks * 512 // stat(2)
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// resident is the memory of the server's own process.
func (s *server) resident() int64 {
	s.t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	var size, pages int64
	if _, err := fmt.Sscan(string(raw), &size, &pages); err != nil {
		s.t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// metric reads one sample from the API, as a Prometheus with the admin key would.
func (s *server) metric(name string) float64 {
	s.t.Helper()
	key, err := os.ReadFile(filepath.Join(s.data, "admin.key"))
	if err != nil {
		s.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, "http://"+s.addr+"/metrics", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(key)))
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		s.t.Fatalf("metrics: status %d, %v\n%s", res.StatusCode, err, text)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
			f, err := strconv.ParseFloat(value, 64)
			if err != nil {
				s.t.Fatal(err)
			}
			return f
		}
	}
	s.t.Fatalf("there is no metric %s", name)
	return 0
}
