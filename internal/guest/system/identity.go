// Package system changes the guest itself: name, clock, randomness, the files in /etc that say who it is, and, for a
// guest without any other init, its mounts. Every change is skipped where the guest is already so, because
// the host repeats them, and the first time is on the way of every new sandbox.
package system

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
)

// Identity is what makes this guest another than the one it was copied from. Empty fields change nothing.
type Identity struct {
	Hostname  string
	MachineID string // 32 hexadecimal digits
	Entropy   []byte // mixed into the kernel's pool
	Time      time.Time
	Hosts     map[string]string // name to address, for /etc/hosts
	DNS       []string          // addresses, for /etc/resolv.conf
	Trust     string            // certificates in PEM, for what programs trust
}

const (
	maxEntropy = 4096
	maxHosts   = 1024
	maxDNS     = 8 // resolvers read three, some read more
)

// Validate refuses what would damage the files it goes into. The host is trusted, but its callers' input reaches this far.
func (id Identity) Validate() error {
	if id.Hostname != "" && !validName(id.Hostname, 64) {
		return tartarus.Errorf(tartarus.Invalid, "hostname %q is not a host name", id.Hostname)
	}
	if id.MachineID != "" && (len(id.MachineID) != 32 || strings.Trim(id.MachineID, "0123456789abcdef") != "") {
		return tartarus.Errorf(tartarus.Invalid, "machineID %q is not 32 hexadecimal digits", id.MachineID)
	}
	if len(id.Entropy) > maxEntropy || len(id.Hosts) > maxHosts || len(id.DNS) > maxDNS {
		return tartarus.Errorf(tartarus.TooLarge, "at most %d bytes of entropy, %d hosts and %d DNS servers", maxEntropy, maxHosts, maxDNS)
	}
	if err := checkTrust(id.Trust); err != nil {
		return err
	}
	for name, address := range id.Hosts {
		if _, err := netip.ParseAddr(address); err != nil || !validName(name, 253) {
			return tartarus.Errorf(tartarus.Invalid, "hosts entry %q: %q is not a name with its address", name, address)
		}
	}
	for _, address := range id.DNS {
		if _, err := netip.ParseAddr(address); err != nil {
			return tartarus.Errorf(tartarus.Invalid, "DNS server %q is not an address", address)
		}
	}
	return nil
}

func validName(s string, most int) bool {
	if s == "" || len(s) > most || s[0] == '-' || s[0] == '.' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_' {
			return false
		}
	}
	return true
}

// Kernel is how a Guest changes what is not a file. Tests put their own functions here, so that they
// do not rename the machine they run on.
type Kernel struct {
	SetHostname func(name string) error
	SetClock    func(now time.Time) error
	AddEntropy  func(seed []byte) error
}

// Linux changes the machine this program runs on.
func Linux() Kernel {
	return Kernel{
		SetHostname: func(name string) error { return unix.Sethostname([]byte(name)) },
		SetClock: func(now time.Time) error {
			ts := unix.NsecToTimespec(now.UnixNano())
			return unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
		},
		AddEntropy: addEntropy,
	}
}

// Guest applies identities. It is not safe for concurrent use; its owner takes turns.
type Guest struct {
	Root   string // where its /etc and /run are; "/" except in tests
	Kernel Kernel
}

// maxDrift is how wrong the clock may be before it is set: well above the time a request takes, well below what
// certificates and caches notice.
const maxDrift = time.Second

// Apply makes the guest the one that id describes. What the runtime does not permit is left as it is and
// returned as skipped; any other trouble is an error, after everything else was tried.
func (g *Guest) Apply(id Identity) (skipped []string, err error) {
	do := func(what string, change func() error) {
		switch e := change(); {
		case e == nil:
		case errors.Is(e, fs.ErrPermission), errors.Is(e, unix.EROFS), errors.Is(e, unix.ENOSYS):
			skipped = append(skipped, what)
		default:
			err = errors.Join(err, fmt.Errorf("%s: %w", what, e))
		}
	}
	if len(id.Entropy) > 0 {
		do("add entropy", func() error { return g.Kernel.AddEntropy(id.Entropy) })
	}
	if !id.Time.IsZero() && time.Until(id.Time).Abs() > maxDrift {
		do("set clock", func() error { return g.Kernel.SetClock(id.Time) })
	}
	if id.Hostname != "" {
		do("set hostname", func() error { return g.Kernel.SetHostname(id.Hostname) })
		do("write hostname", func() error { return g.write("etc/hostname", id.Hostname+"\n", 0o644) })
	}
	if id.MachineID != "" {
		do("write machine-id", func() error { return g.write("etc/machine-id", id.MachineID+"\n", 0o444) })
	}
	if id.Hostname != "" || len(id.Hosts) > 0 {
		do("write hosts", func() error { return g.writeHosts(id) })
	}
	if id.Trust != "" {
		do("write certificates", func() error { return g.writeTrust(id.Trust) })
	}
	if len(id.DNS) > 0 {
		do("write resolv.conf", func() error { return g.writeResolv(id.DNS) })
	}
	return skipped, err
}

// Note writes /run/e2b/.NAME, where programs inside a sandbox look for facts about it.
func (g *Guest) Note(name, value string) error {
	return g.write("run/e2b/."+name, value, 0o644)
}

// maxFile bounds what is read of a file in order to compare it; ours are far below.
const maxFile = 1 << 20

// edit makes the file hold what change makes of what it holds. It writes in place, because /etc/hosts and
// /etc/resolv.conf may be mounts that cannot be renamed over, and opens only once, because in some runtimes that is what
// costs.
func (g *Guest) edit(name string, mode os.FileMode, change func(old []byte) []byte) error {
	path := filepath.Join(g.Root, name)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, mode)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, mode)
	}
	if err != nil {
		return err
	}
	old, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err == nil {
		if data := change(old); !bytes.Equal(old, data) {
			// Not truncated first: ext4 answers that with a flush to disk, which takes milliseconds.
			_, err = f.WriteAt(data, 0)
			if err == nil && len(old) > len(data) {
				err = f.Truncate(int64(len(data)))
			}
		}
	}
	return errors.Join(err, f.Close())
}

// write makes the file hold data.
func (g *Guest) write(name, data string, mode os.FileMode) error {
	return g.edit(name, mode, func([]byte) []byte { return []byte(data) })
}

// The lines of /etc/hosts between these two are ours; the others are the template's.
const (
	hostsBegin = "# tartarus begin\n"
	hostsEnd   = "# tartarus end\n"
)

func (g *Guest) writeHosts(id Identity) error {
	return g.edit("etc/hosts", 0o644, id.hosts)
}

// hosts puts our lines at the end of the file.
func (id Identity) hosts(old []byte) []byte {
	text := string(old)
	if before, rest, ok := strings.Cut(text, hostsBegin); ok {
		_, after, _ := strings.Cut(rest, hostsEnd)
		text = before + after
	}
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	var b strings.Builder
	b.WriteString(text + hostsBegin)
	if !strings.Contains(text, "localhost") {
		b.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
	}
	if id.Hostname != "" {
		b.WriteString("127.0.1.1 " + id.Hostname + "\n")
	}
	names := make([]string, 0, len(id.Hosts))
	for name := range id.Hosts {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		b.WriteString(id.Hosts[name] + " " + name + "\n")
	}
	b.WriteString(hostsEnd)
	return []byte(b.String())
}

func (g *Guest) writeResolv(servers []string) error {
	path := filepath.Join(g.Root, "etc/resolv.conf")
	// Images often carry a link to the file of a resolver that does not run here.
	if st, err := os.Lstat(path); err == nil && st.Mode()&fs.ModeSymlink != 0 {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	var b strings.Builder
	for _, s := range servers {
		b.WriteString("nameserver " + s + "\n")
	}
	return g.write("etc/resolv.conf", b.String(), 0o644)
}
