package firecracker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// program is the monitor's program, which is copied once so that what runs is what was looked at.
type program struct {
	path    string
	version version
	warning string
}

// versionTimeout bounds a program that is asked for its version. Measured: 2 ms.
const versionTimeout = 10 * time.Second

// monitor finds the monitor's program. After the first time it costs nothing.
func (d *Driver) monitor(ctx context.Context) (*program, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.program != nil {
		return d.program, nil
	}
	p, err := d.takeProgram(ctx)
	if err != nil {
		return nil, err
	}
	if p.warning != "" {
		d.log.Warn("unknown release of Firecracker", "version", p.version.String(), "newest known", newestMinor)
	}
	d.program = p
	return p, nil
}

func (d *Driver) takeProgram(ctx context.Context) (*program, error) {
	for what, path := range map[string]string{"firecracker": d.cfg.Firecracker, "jailer": d.cfg.Jailer} {
		if path == "" {
			return nil, tartarus.Errorf(tartarus.Unsupported, "%s is not installed", what)
		}
	}
	jailer, err := askVersion(ctx, d.cfg.Jailer)
	if err != nil {
		return nil, err
	}
	p := &program{}
	if p.path, err = d.copyProgram(d.cfg.Firecracker); err != nil {
		return nil, err
	}
	if p.version, err = askVersion(ctx, p.path); err != nil {
		return nil, err
	}
	if jailer != p.version {
		return nil, tartarus.Errorf(tartarus.Unsupported, "Firecracker is of release %s and its jailer of %s; install both of one release", p.version, jailer)
	}
	p.warning, err = p.version.check()
	return p, err
}

func askVersion(ctx context.Context, path string) (version, error) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.Env = []string{}
	out, err := cmd.Output()
	if err != nil {
		return version{}, tartarus.Errorf(tartarus.Unsupported, "ask %s for its version: %w", filepath.Base(path), err)
	}
	return parseVersion(string(out))
}

// copyProgram copies the program into a folder that is named after its content. The jailer names jails after the file.
func (d *Driver) copyProgram(from string) (string, error) {
	in, err := os.Open(from)
	if errors.Is(err, fs.ErrNotExist) {
		return "", tartarus.Errorf(tartarus.Unsupported, "%s does not exist", from)
	}
	if err != nil {
		return "", err
	}
	defer in.Close()
	bin := filepath.Join(d.dir, "bin")
	out, err := os.CreateTemp(bin, "new-")
	if err != nil {
		return "", err
	}
	defer os.Remove(out.Name()) // gone already when all went well
	defer out.Close()
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(out, h), in); err != nil {
		return "", fmt.Errorf("copy %s: %w", from, err)
	}
	if err := errors.Join(out.Chmod(0o755), out.Close()); err != nil {
		return "", fmt.Errorf("copy %s: %w", from, err)
	}
	to := filepath.Join(bin, hex.EncodeToString(h.Sum(nil)[:8]), Name)
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return "", err
	}
	return to, os.Rename(out.Name(), to)
}
