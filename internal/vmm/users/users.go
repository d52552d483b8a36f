// Package users gives each virtual machine monitor a user of its own on the host. Users are numbers of a range that nobody
// else uses; two that are lent at the same time are never the same, also between processes of one host.
package users

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
)

// Default range: above what login.defs(5), systemd's dynamic users (61184–65519) and its containers (524288–1879048191) take.
const (
	DefaultFirst = 1_900_000_000
	DefaultCount = 65_536
	DefaultDir   = "/run/tartarus/users"
)

// Range is where users are taken from.
type Range struct {
	Dir   string // claims, one file per user, shared by all processes of the host; must not survive a reboot
	First int    // lowest user and group id
	Count int
}

// Default is a range that no distribution uses.
func Default() Range { return Range{Dir: DefaultDir, First: DefaultFirst, Count: DefaultCount} }

// Validate refuses ranges that hold root or ids that the kernel keeps for itself.
func (r Range) Validate() error {
	const lowest, highest = 1000, 1<<32 - 2 // 2^32-1 means "nobody at all" to system calls
	if !filepath.IsAbs(r.Dir) || r.First < lowest || r.Count < 1 || r.First+r.Count-1 > highest {
		return tartarus.Errorf(tartarus.Invalid, "users: range of %d from %d with claims in %q: ids must be %d to %d and the folder absolute",
			r.Count, r.First, r.Dir, lowest, highest)
	}
	return nil
}

// Claim lends a user to owner, a folder that exists and lives as long as what runs as the user. A claim whose
// folder is gone counts for nothing. When all are lent it is tartarus.Unavailable.
func (r Range) Claim(owner string) (uid int, err error) {
	unlock, err := r.lock()
	if err != nil {
		return 0, fmt.Errorf("claim user: %w", err)
	}
	defer unlock()
	from := rand.IntN(r.Count) // a number rests as long as it can before it is used again
	for i := range r.Count {
		uid := r.First + (from+i)%r.Count
		if holder, taken := r.owner(uid); taken {
			if _, err := os.Lstat(holder); !errors.Is(err, fs.ErrNotExist) {
				continue
			}
		}
		if err := os.WriteFile(r.path(uid), []byte(owner), 0o600); err != nil {
			return 0, fmt.Errorf("claim user: %w", err)
		}
		return uid, nil
	}
	return 0, tartarus.Errorf(tartarus.Unavailable, "all %d users for virtual machines are taken", r.Count)
}

// Release takes back what was lent to owner. It does nothing when uid is no longer owner's.
func (r Range) Release(uid int, owner string) error {
	unlock, err := r.lock()
	if err != nil {
		return fmt.Errorf("release user: %w", err)
	}
	defer unlock()
	if now, taken := r.owner(uid); !taken || now != owner {
		return nil
	}
	if err := os.Remove(r.path(uid)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("release user: %w", err)
	}
	return nil
}

func (r Range) path(uid int) string { return filepath.Join(r.Dir, strconv.Itoa(uid)) }

func (r Range) owner(uid int) (string, bool) {
	b, err := os.ReadFile(r.path(uid))
	return strings.TrimSpace(string(b)), err == nil
}

// lock keeps other processes out for the few file operations of a claim.
func (r Range) lock() (unlock func(), err error) {
	if err := os.MkdirAll(r.Dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(r.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}
