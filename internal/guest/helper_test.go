package guest_test

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus/api/gen/filesystem/filesystemconnect"
	"github.com/tartarus-sandbox/tartarus/api/gen/process/processconnect"
	"github.com/tartarus-sandbox/tartarus/internal/guest"
	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
	"github.com/tartarus-sandbox/tartarus/internal/guest/system"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// agent is a real agent on a loopback port, in a root of its own.
type agent struct {
	url, addr string
	root      string // holds etc and run
	home      string // of "user"
	client    *guestclient.Client
	procs     processconnect.ProcessClient
	fs        filesystemconnect.FilesystemClient
	http      *http.Client

	mu     sync.Mutex
	host   bool // whether requests count as the host's
	kernel kernel
}

// kernel records what the agent would have changed on the machine.
type kernel struct {
	hostname string
	clock    time.Time
	entropy  []byte
	deny     error
}

func (a *agent) setHost(yes bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.host = yes
}

func (a *agent) fakeKernel() system.Kernel {
	record := func(change func(*kernel)) error {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.kernel.deny == nil {
			change(&a.kernel)
		}
		return a.kernel.deny
	}
	return system.Kernel{
		SetHostname: func(n string) error { return record(func(k *kernel) { k.hostname = n }) },
		SetClock:    func(t time.Time) error { return record(func(k *kernel) { k.clock = t }) },
		AddEntropy:  func(b []byte) error { return record(func(k *kernel) { k.entropy = b }) },
	}
}

// userID is that of "user" in the agent's passwd file; nothing on this machine has it.
const userID = 54321

// start runs an agent until the test ends. option may change its Config.
func start(t testing.TB, option ...func(*guest.Config)) *agent {
	t.Helper()
	a := &agent{root: openDir(t), host: true}
	a.home = filepath.Join(a.root, "home/user")
	a.write(t, "etc/passwd", "root:x:0:0:root:"+a.root+"/root:/bin/sh\nuser:x:54321:54321::"+a.home+":/bin/sh\nother:x:54322:54322::/:/bin/sh\n")
	a.write(t, "etc/group", "root:x:0:\nuser:x:54321:\nteam:x:54400:other,user\nother:x:54322:\n")
	for _, dir := range []string{a.home, a.root + "/root"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(a.home, userID, userID); err != nil {
			t.Fatal(err)
		}
	}
	c := guest.Default()
	c.Listen, c.Root, c.Kernel = "127.0.0.1:0", a.root, a.fakeKernel()
	c.FromHost = func(net.Addr) bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.host
	}
	for _, o := range option {
		o(&c)
	}
	srv, err := guest.New(c)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", c.Listen)
	if err != nil {
		t.Fatal(err)
	}
	a.addr = listener.Addr().String()
	a.url = "http://" + a.addr
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, listener) }()
	transport := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 256}
	a.http = &http.Client{Transport: transport}
	a.client = guestclient.New(guestclient.Config{BaseURL: a.url, RoundTripper: transport})
	a.procs = processconnect.NewProcessClient(a.http, a.url)
	a.fs = filesystemconnect.NewFilesystemClient(a.http, a.url)
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("serve: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("the agent does not stop")
		}
		transport.CloseIdleConnections()
	})
	return a
}

// openDir is a temporary folder that other users may enter, unlike t.TempDir.
func openDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "guest-test-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (a *agent) write(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(a.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// needRoot skips a test that changes users or mounts.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it acts as other users")
	}
}

// eventually polls until check holds.
func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !check() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// alive reports whether a process exists and is not a zombie.
func alive(pid string) bool {
	data, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	return !strings.HasPrefix(rest, "Z")
}

func contains(t *testing.T, text, part string) {
	t.Helper()
	if !strings.Contains(text, part) {
		t.Errorf("%q does not contain %q", text, part)
	}
}
