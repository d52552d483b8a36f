package mounted

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus/internal/volume"
)

// helperVariable makes the test program a helper, as the agent's program is one.
const helperVariable = "TARTARUS_TEST_VOLUME"

func TestMain(m *testing.M) {
	if path := os.Getenv(helperVariable); path != "" {
		if err := Helper(context.Background(), path); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// rig is a volume mounted in this machine's own kernel: what a guest with a Linux kernel sees.
type rig struct {
	t      *testing.T
	tree   *volume.Tree
	dir    string // of the volume on the node's side
	at     string // where it is mounted
	mounts Mounts
	cut    func() // ends the connection
}

func newRig(t *testing.T, quota int64) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("this kernel has no FUSE")
	}
	r := &rig{t: t, at: filepath.Join(t.TempDir(), "at")}
	lib := t.TempDir()
	l, err := volume.OpenLibrary(lib, quota)
	if err != nil {
		t.Fatal(err)
	}
	id := volume.NewID()
	if err := l.Make(id); err != nil {
		t.Fatal(err)
	}
	r.dir = filepath.Join(lib, id)
	tree, release, err := l.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	r.tree = tree
	var helper *exec.Cmd
	r.mounts.Start = func(path string, control *os.File) error {
		helper = exec.Command(os.Args[0])
		helper.Env = append(os.Environ(), helperVariable+"="+path)
		helper.ExtraFiles = []*os.File{control}
		return helper.Start()
	}
	if err := r.mounts.Ensure(t.Context(), r.at); errors.Is(err, unix.EPERM) {
		t.Skipf("mounting is not permitted here: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.mounts.Close()
		_ = unix.Unmount(r.at, unix.MNT_DETACH)
		_ = helper.Process.Kill()
		_ = helper.Wait()
		r.cut()
	})
	r.connect()
	return r
}

// connect gives the helper a connection to the tree.
func (r *rig) connect() {
	r.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	defer l.Close()
	theirs, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	defer theirs.Close()
	ours, err := l.Accept()
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = r.tree.Serve(ctx, ours)
	}()
	r.cut = func() { cancel(); <-done }
	f, err := theirs.(*net.TCPConn).File()
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	if err := r.mounts.Connect(r.at, f); err != nil {
		r.t.Fatal(err)
	}
}

// sh runs a script in the mounted folder, as another process: this one must not wait for itself.
func (r *rig) sh(script string) (string, error) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-ec", "cd "+r.at+"\n"+script)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (r *rig) want(script, out string) {
	r.t.Helper()
	got, err := r.sh(script)
	if err != nil || strings.TrimSpace(got) != out {
		r.t.Fatalf("%s\ngot %q, %v, want %q", script, got, err, out)
	}
}

func (r *rig) refused(script, why string) {
	r.t.Helper()
	if got, err := r.sh(script); err == nil || !strings.Contains(got, why) {
		r.t.Fatalf("%s\ngot %q, %v, want %q", script, got, err, why)
	}
}

func TestMounted(t *testing.T) {
	r := newRig(t, 64<<20)
	r.want("echo one > a; echo two >> a; cat a", "one\ntwo")
	r.want("mv a b; cat b; ls", "one\ntwo\nb")
	r.want("ln -s b link; cat link; readlink link", "one\ntwo\nb")
	r.want("ln b hard; stat -c %h b; rm b; cat hard; rm link", "2\none\ntwo")
	r.want("mkdir -p x/y/z; echo deep > x/y/z/f; mv x w; cat w/y/z/f; find w | sort", "deep\nw\nw/y\nw/y/z\nw/y/z/f")
	r.refused("rmdir w", "not empty")
	r.want("rm -r w; ls", "hard")
	r.want("printf '#!/bin/sh\\necho it runs\\n' > s; chmod 755 s; ./s", "it runs")
	r.want("head -c 5000000 /dev/urandom > big; a=$(sha256sum < big); cp big copy; b=$(sha256sum < copy); test \"$a\" = \"$b\"; stat -c %s copy", "5000000")
	r.want("truncate -s 10 big; stat -c %s big; echo x > big; cat big", "10\nx")
	r.want("touch -d @1000000000 hard; stat -c %Y hard; chmod 4711 s; chown 7:8 s; stat -c '%a %u %g' s", "1000000000\n711 7 8")
	r.refused("mkfifo q", "not permitted")
	r.refused("cat none", "No such file")
	r.refused("cat hard/x", "Not a directory")
	r.want("i=0; while [ $i -lt 500 ]; do : > f$i; i=$((i+1)); done; ls | wc -l; rm f*; ls | wc -l", "504\n4")
	r.want("df --output=size -B1M . | tail -1 | tr -d ' '", "64")
	// What the other side changes is seen at once, and the other way round.
	if err := r.tree.Upload(t.Context(), "hard", strings.NewReader("changed"), volume.Owner{Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	r.want("cat hard; mv hard soft", "changed")
	if b, err := os.ReadFile(filepath.Join(r.dir, "soft")); err != nil || string(b) != "changed" {
		t.Fatalf("got %q, %v", b, err)
	}
}

func TestMountedQuota(t *testing.T) {
	r := newRig(t, 1<<20)
	r.refused("head -c 2000000 /dev/zero > f", "No space left")
	r.want("rm f; echo x > f; cat f", "x")
}

// While there is no connection programs wait, and when there is one again nothing was lost or done twice.
func TestConnectionComesBack(t *testing.T) {
	r := newRig(t, 64<<20)
	type result struct {
		out string
		err error
	}
	done := make(chan result, 1)
	go func() {
		out, err := r.sh("i=0; while [ $i -lt 60 ]; do mkdir d$i; echo $i > d$i/f; mv d$i/f d$i/g; cat d$i/g >> all; rm -r d$i; i=$((i+1)); done; sort -n all | uniq | wc -l; wc -l < all")
		done <- result{out, err}
	}()
	for {
		select {
		case got := <-done:
			if got.err != nil || strings.TrimSpace(got.out) != "60\n60" {
				t.Fatalf("got %q, %v", got.out, got.err)
			}
			return
		case <-time.After(20 * time.Millisecond):
			r.cut()
			time.Sleep(5 * time.Millisecond) // a moment in which requests find nobody
			r.connect()
		}
	}
}

// A program that waits for a node that is away can be killed.
func TestWaitingIsInterrupted(t *testing.T) {
	r := newRig(t, 1<<20)
	r.want("echo x > f", "")
	r.cut()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	cmd := exec.CommandContext(ctx, "cat", filepath.Join(r.at, "f"))
	if err := cmd.Run(); err == nil || time.Since(began) > 20*time.Second {
		t.Fatalf("got %v after %s", err, time.Since(began))
	}
	r.connect()
	r.want("cat f", "x")
}

func TestBadPlaces(t *testing.T) {
	var m Mounts
	for _, p := range []string{"", "/", "relative", "/a/../b", "/a/", "/" + strings.Repeat("x", 5000)} {
		if err := m.Ensure(t.Context(), p); err == nil {
			t.Errorf("%.40q was taken", p)
		}
	}
}
