package linux

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus/internal/guest/handover"
	"github.com/tartarus-sandbox/tartarus/internal/guest/vmboot"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// CommandLine is the kernel's for the guest that c describes. The guest tells its disks apart by itself: the image is the read-only one. how are
// the driver's own words, such as the way in which its machines restart.
func CommandLine(c vmm.Config, how ...string) (string, error) {
	m := machine(c)
	m.Args, m.Env, m.PIDs = c.Args, c.Env, c.Resources.PIDs
	if err := m.Validate(); err != nil {
		return "", err
	}
	p, err := m.Parameter()
	if err != nil {
		return "", err
	}
	// A panic restarts at once, which is the machine's end. The kernel's tests of its own ciphers take a sixth of the time to boot by emulation.
	words := []string{"console=ttyS0", "quiet", "loglevel=1", "panic=-1", "random.trust_cpu=on", "8250.nr_uarts=1", "audit=0", "cryptomgr.notests=1"}
	return strings.Join(append(append(words, how...), p), " "), nil
}

func machine(c vmm.Config) handover.Machine {
	m := handover.Machine{Hostname: c.Hostname}
	if i := c.Interface; i != nil {
		m.Interface = &handover.Interface{MAC: i.MAC, Address: i.Address, Gateway: i.Gateway, GatewayMAC: i.GatewayMAC, MTU: i.MTU}
	}
	return m
}

// tellTime bounds how long a restored guest may take to take its address on. Measured: 2 ms, by emulation 20 ms on a quiet host.
const tellTime = 30 * time.Second

// Tell makes the guest of a machine that was just restored, and runs, the one that c describes: address, name, time, and fresh entropy. Until
// then it answers at the address that it had when it was saved. It does nothing for a guest without a network.
func Tell(ctx context.Context, c vmm.Config) error {
	if c.Interface == nil {
		return nil
	}
	m := machine(c)
	m.Entropy, m.Time = make([]byte, 32), time.Now()
	rand.Read(m.Entropy)
	ctx, cancel := context.WithTimeout(ctx, tellTime)
	defer cancel()
	return handover.Tell(ctx, c.Interface.NetNS, c.Interface.Device, m)
}

// Up reports whether the guest has said, in what it wrote to its console so far, that its first process runs; the error is why it never will.
func Up(console []byte) (bool, error) {
	for line := range bytes.Lines(console) {
		said := strings.TrimSpace(string(line))
		if said == vmboot.Up {
			return true, nil
		}
		if why, ok := strings.CutPrefix(said, vmboot.Down); ok {
			return false, fmt.Errorf("guest: %s", Printable(why))
		}
	}
	return false, nil
}

// Epitaph is what the guest said of its own end; empty when nothing.
func Epitaph(console []byte) string {
	lines := strings.Split(string(console), "\n")
	for i := range lines {
		said := strings.TrimSpace(lines[len(lines)-1-i])
		if what, ok := strings.CutPrefix(said, vmboot.Ended); ok {
			return Printable(what)
		}
		if _, what, ok := strings.Cut(said, "Kernel panic - not syncing: "); ok {
			return "the guest's kernel panicked: " + Printable(what)
		}
	}
	return ""
}

// Printable puts words of a guest or of its monitor, which may be anything, on one line of at most 800 bytes.
func Printable(s string) string {
	const most = 800
	if len(s) > most {
		s = s[:most]
	}
	s = strings.ToValidUTF8(s, "?")
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }), " | ")
}
