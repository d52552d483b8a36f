package e2e

import (
	"cmp"
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus/api"
)

// needRuntime skips a test where the runtime cannot be used, with the reason that doctor gives, and returns how strongly it isolates.
func (s *server) needRuntime(name string) (tier string) {
	s.t.Helper()
	out, _ := s.cli("doctor", "--json")
	var r struct {
		Runtimes []struct {
			Name, Tier, Reason string
			Usable             bool
		}
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		s.t.Fatalf("doctor: %v\n%s", err, out)
	}
	for _, one := range r.Runtimes {
		if one.Name == name && one.Usable {
			return one.Tier
		}
		if one.Name == name {
			s.t.Skipf("needs the runtime %s: %s", name, one.Reason)
		}
	}
	s.t.Fatalf("doctor does not know the runtime %s", name)
	return ""
}

// TestVirtualMachine is, with TARTARUS_TEST_RUNTIME instead of QEMU, a sandbox's life on a kernel of its own, through the API: created, used, paused, resumed by another server, killed.
func TestVirtualMachine(t *testing.T) {
	s := newServer(t, "TARTARUS_WARM_MEMORY=0")
	runtime := cmp.Or(os.Getenv("TARTARUS_TEST_RUNTIME"), "qemu")
	tier := s.needRuntime(runtime)
	memory, cpus := int64(256), int64(1)
	var both [2]*api.Sandbox
	var wg sync.WaitGroup
	for i := range both {
		wg.Go(func() {
			both[i] = s.create(func(n *api.NewSandbox) { n.Runtime, n.MemoryMB, n.CPUCount = runtime, &memory, &cpus })
		})
	}
	wg.Wait()
	if both[0] == nil || both[1] == nil {
		t.FailNow()
	}
	id, other := both[0].SandboxID, both[1].SandboxID

	if out := s.sh(id, "cat /proc/version"); !strings.HasPrefix(out, "Linux version ") || strings.Contains(out, "gVisor") {
		t.Errorf("the kernel says %q", out)
	}
	if out, code := s.cli("ps"); code != 0 || strings.Count(out, runtime) != 2 || !strings.Contains(out, tier) {
		t.Errorf("ps shows neither runtime nor tier %s:\n%s", tier, out)
	}
	if out, code := s.cli("exec", id, "--", "sh", "-c", "exit 7"); code != 7 {
		t.Errorf("exit 7: %d %s", code, out)
	}
	if got := s.sh(id, "hostname"); got != id {
		t.Errorf("it is called %q", got)
	}
	s.filesIn(id)
	s.reaches(id, other)
	s.wakesAsItWas(id)

	if err := s.Kill(t.Context(), other); err != nil {
		t.Error(err)
	}
	if got := s.sh(id, "echo alive"); got != "alive" {
		t.Errorf("after the other was killed it answers %q", got)
	}
}

// filesIn moves a file in and out.
func (s *server) filesIn(id string) {
	s.t.Helper()
	dir := s.t.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	want := strings.Repeat("0123456789abcdef", 3<<16)
	if err := os.WriteFile(in, []byte(want), 0o600); err != nil {
		s.t.Fatal(err)
	}
	for _, args := range [][]string{{"cp", in, id + ":/home/user/file"}, {"cp", id + ":/home/user/file", out}} {
		if said, code := s.cli(args...); code != 0 {
			s.t.Fatalf("%v: %s", args, said)
		}
	}
	if got, err := os.ReadFile(out); err != nil || string(got) != want {
		s.t.Errorf("%d of %d bytes came back, %v", len(got), len(want), err)
	}
}

// reaches tries the way in, through the edge's headers, and ways out that are closed to every sandbox.
func (s *server) reaches(id, other string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, "http://"+s.addr+"/health", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("E2b-Sandbox-Id", id)
	req.Header.Set("E2b-Sandbox-Port", "49983")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusNoContent {
		s.t.Errorf("its agent answers %s through the edge", res.Status)
	}
	// The other sandbox, the host, and what clouds keep their secrets at. Each is dropped, so each waits for as long as it is let.
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		s.t.Fatal(err)
	}
	host := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Minute}
	go func() { _ = host.Serve(l) }()
	defer host.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	theirs := s.address(other)
	for _, target := range []string{"169.254.169.254/", s.address(id).Prev().String() + ":" + port + "/", theirs.String() + ":49983/health"} {
		if out, code := s.cli("exec", id, "--", "sh", "-c", "wget -T 2 -O - http://"+target+" 2>&1"); code == 0 || strings.Contains(out, "404") {
			s.t.Errorf("it reached %s: %s", target, out)
		}
	}
}

// local is how /proc/net/fib_trie shows an address of this machine's own.
var local = regexp.MustCompile(`-- ([0-9.]+)\n *\+?/32 host LOCAL`)

// address is a sandbox's own; its gateway's is the one before.
func (s *server) address(id string) netip.Addr {
	s.t.Helper()
	for _, m := range local.FindAllStringSubmatch(s.sh(id, "cat /proc/net/fib_trie"), -1) {
		if a, err := netip.ParseAddr(m[1]); err == nil && !a.IsLoopback() {
			return a
		}
	}
	s.t.Fatalf("sandbox %s has no address", id)
	return netip.Addr{}
}

// wakesAsItWas pauses a sandbox that counts, has another server resume it, and looks whether it is the same.
func (s *server) wakesAsItWas(id string) {
	s.t.Helper()
	s.sh(id, "echo kept > /home/user/name; ("+counter+") >/dev/null 2>&1 &")
	eventually(s.t, 30*time.Second, func() error { return differs("the count", "", s.sh(id, "cat /tmp/count 2>/dev/null || true")) })
	seed := s.sh(id, "cat /proc/sys/kernel/random/boot_id; cat /etc/machine-id")
	before := s.count(id)
	if err := s.Pause(s.t.Context(), id); err != nil {
		s.t.Fatalf("pause: %v\n%s", err, s.log)
	}
	s.kill()
	s.start()
	if d, err := s.Get(s.t.Context(), id); err != nil || d.State != "paused" {
		s.t.Fatalf("it is %v, %v", d, err)
	}
	if _, err := s.Connect(s.t.Context(), id, 5*time.Minute); err != nil {
		s.t.Fatalf("resume: %v\n%s", err, s.log)
	}
	eventually(s.t, 30*time.Second, func() error {
		if now := s.count(id); now <= before {
			return differs("the count", "", "")
		}
		return nil
	})
	if now := s.count(id); now > before+2000 {
		s.t.Errorf("it counted to %d before and to %d after", before, now)
	}
	if got := s.sh(id, "cat /home/user/name; hostname"); got != "kept\n"+id {
		s.t.Errorf("it holds %q", got)
	}
	if now := s.sh(id, "cat /proc/sys/kernel/random/boot_id; cat /etc/machine-id"); strings.Split(now, "\n")[0] != strings.Split(seed, "\n")[0] {
		s.t.Error("it was booted anew") // the machine id is the host's to give, and may differ
	}
	drift := s.sh(id, "date +%s")
	if d, err := time.ParseDuration(drift + "s"); err != nil || time.Since(time.Unix(int64(d.Seconds()), 0)).Abs() > time.Minute {
		s.t.Errorf("its clock says %s, %v", drift, err)
	}
}
