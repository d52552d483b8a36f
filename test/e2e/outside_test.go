package e2e

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus/test/outside"
)

// internet is a network namespace that stands for the internet, with the servers of package outside.
type internet struct {
	*outside.Servers
	t     *testing.T
	trust string // file with the authority of its web server
}

const (
	outsideName = "e2eout0"
	outsideHost = "198.51.100.129"
	outsideEnd  = "198.51.100.130"
)

// newInternet makes it, or skips the test where this host's own networks are in the way. At most one is there at a time.
func newInternet(t *testing.T) *internet {
	t.Helper()
	binary(t) // skips where no sandbox can run
	lock, err := os.OpenFile(filepath.Join(os.TempDir(), outsideName+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lock.Close() })
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	o := &internet{t: t}
	o.clear()
	o.free()
	t.Cleanup(o.clear)
	steps := []string{
		"netns add " + outsideName,
		"link add " + outsideName + " type veth peer name eth0 netns " + outsideName,
		"addr add " + outsideHost + "/30 dev " + outsideName, "link set " + outsideName + " up",
		"-n " + outsideName + " addr add " + outsideEnd + "/30 dev eth0", "-n " + outsideName + " link set eth0 up", "-n " + outsideName + " link set lo up",
		"-n " + outsideName + " route add default via " + outsideHost,
	}
	for _, a := range outside.Addresses {
		steps = append(steps, "-n "+outsideName+" addr add "+a+"/32 dev lo", "route add "+a+"/32 via "+outsideEnd+" dev "+outsideName)
	}
	for _, s := range steps {
		if out, err := exec.Command("ip", strings.Fields(s)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", s, err, out)
		}
	}
	if o.Servers, err = outside.Serve("/run/netns/" + outsideName); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.Close)
	o.trust = filepath.Join(t.TempDir(), "outside.pem")
	if err := os.WriteFile(o.trust, o.Trust(), 0o600); err != nil {
		t.Fatal(err)
	}
	return o
}

// free looks whether something on this host is in the ranges used here.
func (o *internet) free() {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		o.t.Fatal(err)
	}
	for _, a := range addrs {
		for _, want := range append([]string{outsideHost}, outside.Addresses...) {
			if n, ok := a.(*net.IPNet); ok && n.Contains(net.ParseIP(want)) {
				o.t.Skipf("needs %s, which is in this host's own network %s", want, n)
			}
		}
	}
}

func (o *internet) clear() {
	_ = exec.Command("ip", "link", "del", outsideName).Run()
	_ = exec.Command("ip", "netns", "del", outsideName).Run()
}
