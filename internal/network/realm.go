package network

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/tartarus-sandbox/tartarus"
	"golang.org/x/sys/unix"
)

const (
	realmBits     = 22                    // a realm is a /22
	slotsPerRealm = 1 << (31 - realmBits) // of /31 pairs: 512
	maxRealms     = 8                     // of one pool: 4,096 slots, beyond what one host's memory holds
)

// realm is a numbered block of addresses, claimed by one process at a time.
type realm struct {
	number int
	prefix netip.Prefix
	lock   *os.File // flock held while the pool lives
	next   int      // where the search for a free slot number goes on
}

// owner is what a realm's lock file says about who claimed it.
type owner struct {
	StateDir  string       `json:"stateDir"`
	Ephemeral bool         `json:"ephemeral,omitempty"`
	Prefix    netip.Prefix `json:"prefix"`
	PID       int          `json:"pid"` // for people; whether the owner lives is told by the lock
}

// memory is the pool's own file in StateDir.
type memory struct {
	Realms []int `json:"realms"`
}

func memoryPath(stateDir string) string { return filepath.Join(stateDir, "network.json") }

func readMemory(stateDir string) (memory, error) {
	var m memory
	b, err := os.ReadFile(memoryPath(stateDir))
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return m, fmt.Errorf("read realms: %w", err)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, tartarus.Errorf(tartarus.Corrupt, "network: %s: %w", memoryPath(stateDir), err)
	}
	return m, nil
}

func (p *Pool) writeMemory() error {
	m := memory{Realms: []int{}}
	p.mu.Lock()
	for _, r := range p.realms {
		m.Realms = append(m.Realms, r.number)
	}
	p.mu.Unlock()
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode realms: %w", err)
	}
	return replaceFile(memoryPath(p.cfg.StateDir), b)
}

func replaceFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".network-*")
	if err != nil {
		return fmt.Errorf("write realms: %w", err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write realms: %w", err)
	}
	return nil
}

func (p *Pool) realmPath(number int) string {
	return filepath.Join(p.cfg.RunDir, "realms", strconv.Itoa(number))
}

// realmPrefix is the n-th /22 of base.
func realmPrefix(base netip.Prefix, n int) netip.Prefix {
	b := base.Addr().As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(n)<<(32-realmBits))
	return netip.PrefixFrom(netip.AddrFrom4(b), realmBits)
}

// openRealm opens a realm's lock file and tells whether we got its lock and what its last owner wrote.
// A realm that never had an owner is free; flags say whether its file is made then. The host's lock is held.
func (p *Pool) openRealm(number, flags int) (f *os.File, free bool, o owner, err error) {
	f, err = os.OpenFile(p.realmPath(number), os.O_RDWR|flags, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, true, o, nil
	}
	if err != nil {
		return nil, false, o, fmt.Errorf("open realm %d: %w", number, err)
	}
	lockErr := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if lockErr != nil && !errors.Is(lockErr, unix.EWOULDBLOCK) {
		f.Close()
		return nil, false, o, fmt.Errorf("lock realm %d: %w", number, lockErr)
	}
	b := make([]byte, 8192)
	n, _ := f.ReadAt(b, 0)
	if n > 0 && json.Unmarshal(b[:n], &o) != nil {
		o = owner{} // torn by a crash or a full disk; whoever it was has to claim anew
	}
	return f, lockErr == nil, o, nil
}

// realmState is what a process thinks of a realm that it has not claimed.
type realmState int

const (
	realmOther     realmState = iota // somebody lives there or will come back
	realmOwn                         // of our own StateDir, from before
	realmAbandoned                   // of nobody
)

// stateOf looks a realm up. The host's lock is held.
func (p *Pool) stateOf(number int) (realmState, netip.Prefix, error) {
	f, free, o, err := p.openRealm(number, 0)
	if err != nil {
		return realmOther, netip.Prefix{}, err
	}
	if f != nil {
		defer f.Close()
	}
	switch {
	case !free:
		return realmOther, o.Prefix, nil
	case o.abandoned(number):
		return realmAbandoned, o.Prefix, nil
	case o.StateDir == p.cfg.StateDir:
		return realmOwn, o.Prefix, nil
	}
	return realmOther, o.Prefix, nil
}

// knownRealms lists the numbers that have an owner, or had one. The host's lock is held.
func (p *Pool) knownRealms() ([]int, error) {
	entries, err := os.ReadDir(filepath.Join(p.cfg.RunDir, "realms"))
	if err != nil {
		return nil, fmt.Errorf("list realms: %w", err)
	}
	var numbers []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			numbers = append(numbers, n)
		}
	}
	return numbers, nil
}

// abandoned reports whether the owner of an unlocked realm will not come back for it.
func (o owner) abandoned(number int) bool {
	if o.StateDir == "" || o.Ephemeral {
		return true
	}
	m, err := readMemory(o.StateDir)
	return err == nil && !slices.Contains(m.Realms, number)
}

// reclaimRealms takes the realms again that this StateDir had before. The host's lock is held.
func (p *Pool) reclaimRealms() error {
	m, err := readMemory(p.cfg.StateDir)
	if err != nil {
		return err
	}
	for _, n := range m.Realms {
		f, free, o, err := p.openRealm(n, os.O_CREATE)
		if err != nil {
			return err
		}
		mine := o.StateDir == p.cfg.StateDir
		want := realmPrefix(p.cfg.Base, n)
		switch {
		case !free && mine:
			f.Close()
			return tartarus.Errorf(tartarus.Conflict, "network: process %d already uses %s", o.PID, p.cfg.StateDir)
		case !free || (!mine && o.StateDir != "" && !o.abandoned(n)) || !p.cfg.Base.Contains(want.Addr()):
			f.Close() // the host was restarted and somebody else came first: nothing of ours can be left in it
		case mine && o.Prefix != want:
			f.Close()
			return tartarus.Errorf(tartarus.Conflict, "network: realm %d was claimed with addresses %s, which the base %s does not give", n, o.Prefix, p.cfg.Base)
		default:
			if err := p.take(f, n, want, !mine); err != nil {
				return err
			}
		}
	}
	return p.writeMemory()
}

// claimRealm takes one that nobody has. The host's lock is held.
func (p *Pool) claimRealm() error {
	if len(p.realms) == maxRealms {
		return tartarus.Errorf(tartarus.Exhausted, "network: all %d slots are in use", maxRealms*slotsPerRealm)
	}
	taken, err := p.takenPrefixes()
	if err != nil {
		return err
	}
	for n := range 1 << (realmBits - p.cfg.Base.Bits()) {
		want := realmPrefix(p.cfg.Base, n)
		if slices.ContainsFunc(taken, want.Overlaps) {
			continue
		}
		f, free, o, err := p.openRealm(n, os.O_CREATE)
		if err != nil {
			return err
		}
		if !free || !o.abandoned(n) {
			f.Close()
			continue
		}
		if err := p.take(f, n, want, true); err != nil {
			return err
		}
		return p.writeMemory()
	}
	return tartarus.Errorf(tartarus.Unavailable, "network: no realm of %s is free", p.cfg.Base)
}

// takenPrefixes lists the networks that a new realm must stay clear of: the host's, and live realms of pools with another base.
func (p *Pool) takenPrefixes() ([]netip.Prefix, error) {
	nets, err := p.host.addresses()
	if err != nil {
		return nil, err
	}
	var taken []netip.Prefix
	for _, n := range nets {
		if a, ok := netip.AddrFromSlice(n.IP.To4()); ok && !p.cfg.Base.Contains(a) {
			bits, _ := n.Mask.Size()
			taken = append(taken, netip.PrefixFrom(a, bits).Masked())
		}
	}
	numbers, err := p.knownRealms()
	if err != nil {
		return nil, err
	}
	for _, n := range numbers {
		state, prefix, err := p.stateOf(n)
		if err != nil {
			return nil, err
		}
		if prefix.IsValid() && state != realmAbandoned {
			taken = append(taken, prefix)
		}
	}
	return taken, nil
}

// take makes an unlocked realm ours; what an earlier owner left in it is cleared away when it is not our own.
func (p *Pool) take(f *os.File, number int, prefix netip.Prefix, sweep bool) error {
	r := &realm{number: number, prefix: prefix, lock: f}
	p.mu.Lock()
	p.realms = append(p.realms, r)
	p.mu.Unlock()
	if sweep {
		if err := p.sweepRealm(number); err != nil {
			return err
		}
	}
	b, err := json.Marshal(owner{StateDir: p.cfg.StateDir, Ephemeral: p.cfg.Ephemeral, Prefix: prefix, PID: os.Getpid()})
	if err != nil {
		return fmt.Errorf("encode realm owner: %w", err)
	}
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("claim realm %d: %w", number, err)
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		return fmt.Errorf("claim realm %d: %w", number, err)
	}
	return p.fw.addRealm(prefix)
}

// leaveRealms takes the realms in which nothing lives out of the rules, and the table with the last of all.
// The host's lock is held.
func (p *Pool) leaveRealms() error {
	var errs error
	for _, r := range p.emptyRealms() {
		errs = errors.Join(errs, p.fw.removeRealm(r.prefix))
		if p.cfg.Ephemeral {
			errs = errors.Join(errs, os.Remove(p.realmPath(r.number)))
		}
	}
	return errors.Join(errs, p.leaveHost())
}

// leaveHost takes away what all pools share when no slot of any is left. The host's lock is held.
func (p *Pool) leaveHost() error {
	empty, err := p.fw.removeWhenEmpty()
	if err != nil || !empty {
		return err
	}
	if names, err := p.host.namespaces(); err != nil || len(names) > 0 {
		return err
	}
	return p.host.unmountNamespaces()
}

func (p *Pool) emptyRealms() []*realm {
	p.mu.Lock()
	defer p.mu.Unlock()
	live := map[*realm]bool{}
	for name := range p.slots {
		live[p.realmOf(name)] = true
	}
	for name := range p.foreign {
		live[p.realmOf(name)] = true
	}
	return slices.DeleteFunc(slices.Clone(p.realms), func(r *realm) bool { return live[r] })
}

// dropRealms releases the locks. The pool's lock is held.
func (p *Pool) dropRealms() {
	for _, r := range p.realms {
		r.lock.Close()
	}
	p.realms = nil
}
