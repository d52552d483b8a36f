package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
)

// AdminKeyFile is where, in the data folder, the first key is kept for the command line to find.
const AdminKeyFile = "admin.key"

// secretKeyFile is the key that opens tenants' secrets, in the data folder. It is not in the store, so that a copy of the store shows none.
const secretKeyFile = "secrets.key"

// storeFile is the embedded store, in the state folder.
const storeFile = "tartarus.db"

// runsDir holds the state of one-shot stacks, a folder each, below the data folder.
const runsDir = "runs"

// stateDir returns the folder of this process's store, and what undoes it. A one-shot stack gets a folder of its own that is
// removed at the end; folders whose process was killed are removed by the next one.
func (d *Daemon) stateDir() (dir string, cleanup func() error, err error) {
	none := func() error { return nil }
	if err := os.MkdirAll(d.cfg.DataDir, 0o711); err != nil {
		return "", none, fmt.Errorf("create data folder: %w", err)
	}
	if !d.cfg.Ephemeral {
		return d.cfg.DataDir, none, nil
	}
	runs := filepath.Join(d.cfg.DataDir, runsDir)
	if err := os.MkdirAll(runs, 0o711); err != nil {
		return "", none, fmt.Errorf("create state folder: %w", err)
	}
	dir = filepath.Join(runs, tartarus.NewID())
	if err := os.Mkdir(dir, 0o711); err != nil {
		return "", none, fmt.Errorf("create state folder: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return "", none, errors.Join(err, os.RemoveAll(dir))
	}
	return dir, func() error { return errors.Join(os.RemoveAll(dir), lock.Close()) }, nil
}

// lockDir takes the lock that says that a state folder is in use. The kernel drops it with the process.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state folder: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock state folder %s: %w", dir, err)
	}
	return f, nil
}

// abandoned lists the folders of one-shot stacks whose process is gone.
func abandoned(dataDir string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(dataDir, runsDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list one-shot stacks: %w", err)
	}
	var out []string
	for _, e := range entries {
		dir := filepath.Join(dataDir, runsDir, e.Name())
		// A folder is made before its lock is taken; one this young may be about to be locked.
		if info, err := e.Info(); err != nil || time.Since(info.ModTime()) < 10*time.Second {
			continue
		}
		if lock, err := lockDir(dir); err == nil {
			_ = lock.Close()
			out = append(out, dir)
		}
	}
	return out, nil
}

// adminSecret returns the key in file. The first start makes one.
func adminSecret(file string) (string, error) {
	raw, err := os.ReadFile(file)
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist):
		secret := tenant.NewSecret()
		if err := writeSecret(file, secret); err != nil {
			return "", err
		}
		raw = []byte(secret)
	default:
		return "", fmt.Errorf("read admin key: %w", err)
	}
	secret := strings.TrimSpace(string(raw))
	if !strings.HasPrefix(secret, "e2b_") {
		return "", tartarus.Errorf(tartarus.Corrupt, "%s does not hold an API key; remove it, and the next start makes a new one", file)
	}
	return secret, nil
}

// registerKey makes the admin key known to a store that does not have it, because it is new or has lost it.
func registerKey(ctx context.Context, keys tenant.Store, secret string) error {
	hash := tenant.HashSecret(secret)
	if _, err := keys.KeyByHash(ctx, hash); !tartarus.Is(err, tartarus.NotFound) {
		return err
	}
	err := keys.PutKey(ctx, tenant.Key{
		ID: tartarus.NewID(), Hash: hash, Tenant: tenant.Default, Name: "first", Role: tenant.Admin, Exec: true, CreatedAt: time.Now(),
	})
	if tartarus.Is(err, tartarus.Conflict) {
		return nil // another replica with the same file was quicker
	}
	return err
}

// writeSecret writes a file that only its owner reads, whole or not at all.
func writeSecret(file, secret string) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), ".key-*") // made with mode 0600
	if err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	defer os.Remove(tmp.Name())
	if _, err = tmp.WriteString(secret + "\n"); err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	return nil
}
