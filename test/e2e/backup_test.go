package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus/api"
)

// backupCommands are those of docs/backup.md, on other folders.
func backupCommands(t *testing.T, from, to string) string {
	t.Helper()
	raw, err := os.ReadFile("../../docs/backup.md")
	if err != nil {
		t.Fatal(err)
	}
	_, script, ok := strings.Cut(string(raw), "```sh\n")
	script, _, closed := strings.Cut(script, "```")
	if !ok || !closed {
		t.Fatal("docs/backup.md has no commands")
	}
	for old, now := range map[string]string{"cd /var/lib/tartarus\n": "cd " + from + "\n", "to=/srv/backup/tartarus": "to=" + to} {
		if strings.Count(script, old) != 1 {
			t.Fatalf("%q is not in the commands:\n%s", old, script)
		}
		script = strings.Replace(script, old, now, 1)
	}
	return script
}

// writers make tenants one after the other until they are stopped; each counts those that were acknowledged.
type writers struct {
	all     sync.WaitGroup
	stop    chan struct{}
	written [4]atomic.Int64
}

func tenantOf(writer int, n int64) string { return fmt.Sprintf("w%d-%06d", writer, n) }

func (w *writers) start(s *server) {
	w.stop = make(chan struct{})
	for i := range w.written {
		w.all.Go(func() {
			for n := int64(1); ; n++ {
				select {
				case <-w.stop:
					return
				default:
				}
				if _, err := s.CreateTenant(s.t.Context(), api.NewTenant{Name: tenantOf(i, n)}); err != nil {
					s.t.Errorf("create tenant: %v", err)
					return
				}
				w.written[i].Store(n)
			}
		})
	}
}

// A copy made by the documented commands while the server works has everything that was acknowledged before, and nothing by halves; another server
// starts on it and has what was paused.
func TestBackup(t *testing.T) {
	if _, err := exec.LookPath("sqlite3"); err != nil {
		t.Skipf("needs sqlite3 (apt-get install sqlite3): %v", err)
	}
	s := newServer(t)
	id := s.create().SandboxID
	s.sh(id, "echo kept > /tmp/file")
	if err := s.Pause(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "copy")
	var w writers
	w.start(s)
	stop := sync.OnceFunc(func() { close(w.stop); w.all.Wait() })
	defer stop()
	var before [len(w.written)]int64
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		least := int64(1 << 62)
		for i := range before {
			before[i] = w.written[i].Load()
			least = min(least, before[i])
		}
		if least >= 20 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the writers come to nothing: %v", before)
		}
	}
	if out, err := exec.CommandContext(t.Context(), "sh", "-euc", backupCommands(t, s.data, copied)).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	stop()
	if err := s.Kill(t.Context(), id); err != nil { // two servers on one host must not both have it
		t.Fatal(err)
	}

	other := newServerIn(t, copied)
	found, err := other.Tenants(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	has := map[string]bool{}
	for _, tenant := range found {
		has[tenant.Name] = true
	}
	for i := range before {
		n := int64(0)
		for has[tenantOf(i, n+1)] {
			n++
		}
		if n < before[i] {
			t.Errorf("writer %d: %d tenants are in the copy, %d were acknowledged before it was made", i, n, before[i])
		}
		t.Logf("writer %d: %d acknowledged before the copy, %d in it, %d at the end", i, before[i], n, w.written[i].Load())
		for later := n + 2; later <= w.written[i].Load(); later++ {
			if has[tenantOf(i, later)] {
				t.Errorf("writer %d: the copy has number %d and not number %d", i, later, n+1)
			}
		}
	}
	if _, err := other.Connect(t.Context(), id, time.Minute); err != nil {
		t.Fatalf("resume from the copy: %v", err)
	}
	if got := other.sh(id, "cat /tmp/file"); strings.TrimSpace(got) != "kept" {
		t.Errorf("the file is %q", got)
	}
	if out, code := other.cli("audit", "verify"); code != 0 || !strings.Contains(out, "sound") {
		t.Errorf("audit verify: %d\n%s", code, out)
	}
}
