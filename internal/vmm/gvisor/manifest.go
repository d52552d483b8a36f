package gvisor

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	"github.com/tartarus-sandbox/tartarus"
)

const (
	manifestName   = "manifest.json"
	manifestFormat = 1

	// manifestMost bounds what is read as a manifest: a checksum is 11 bytes of JSON, so this is for
	// snapshots of 1.5 TB.
	manifestMost = 16 << 20

	// chunk is how much one checksum covers. CRC-32C finds every burst of up to 32 bits in it and misses other
	// damage once in 4 billion; it runs at memory speed where SHA-256 would cost more than the restore. Against
	// forgery the store that keeps snapshots has its own digests.
	chunk = 1 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// manifest says what a snapshot is and how its files must look.
type manifest struct {
	Format  int       `json:"format"`
	Driver  string    `json:"driver"`
	Version string    `json:"version"` // of the sandbox that wrote it
	RootFS  string    `json:"rootfs"`  // which image it stands on
	Files   []fileSum `json:"files"`
}

type fileSum struct {
	Name string   `json:"name"`
	Size int64    `json:"size"`
	CRC  []uint32 `json:"crc"` // of each chunk
}

// sealed is the manifest as it is stored: damage to the manifest itself must be seen too.
type sealed struct {
	CRC      uint32          `json:"crc"`
	Manifest json.RawMessage `json:"manifest"`
}

func (m manifest) write(dir string) error {
	inner, err := json.Marshal(m)
	if err != nil {
		return err
	}
	b, err := json.Marshal(sealed{CRC: crc32.Checksum(inner, castagnoli), Manifest: inner})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, manifestName), b, 0o600)
}

func readManifest(dir string) (manifest, error) {
	var m manifest
	f, err := os.Open(filepath.Join(dir, manifestName))
	if errors.Is(err, fs.ErrNotExist) {
		return m, tartarus.Errorf(tartarus.Corrupt, "snapshot has no manifest")
	}
	if err != nil {
		return m, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, manifestMost))
	if err != nil {
		return m, err
	}
	var s sealed
	if err := strict(b, &s); err != nil || crc32.Checksum(s.Manifest, castagnoli) != s.CRC {
		return m, tartarus.Errorf(tartarus.Corrupt, "snapshot manifest is damaged")
	}
	if err := json.Unmarshal(s.Manifest, &m); err != nil {
		return m, tartarus.Errorf(tartarus.Corrupt, "read snapshot manifest: %w", err)
	}
	return m, nil
}

func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows")
	}
	return nil
}

// fits reports whether this driver, on this image, can use the snapshot.
func (m manifest) fits(rootfs string) error {
	switch {
	case m.Driver != Name:
		return tartarus.Errorf(tartarus.Unsupported, "snapshot is of runtime %q", m.Driver)
	case m.Format != manifestFormat:
		return tartarus.Errorf(tartarus.Unsupported, "snapshot has format %d, this program reads %d", m.Format, manifestFormat)
	case m.Version != Version():
		return tartarus.Errorf(tartarus.Unsupported, "snapshot was made by gVisor %s, this is %s", m.Version, Version())
	}
	id, err := imageID(rootfs)
	if err != nil {
		return err
	}
	if id != m.RootFS {
		return tartarus.Errorf(tartarus.Invalid, "snapshot was made on another root file system")
	}
	return nil
}

// verify compares the files with the manifest.
func (m manifest) verify(ctx context.Context, files []*os.File) error {
	if len(m.Files) != len(files) {
		return tartarus.Errorf(tartarus.Corrupt, "snapshot manifest lists %d files", len(m.Files))
	}
	for i, f := range files {
		want := m.Files[i]
		got, err := checksum(ctx, f)
		if err != nil {
			return err
		}
		if want.Name != filepath.Base(f.Name()) || want.Size != got.Size || !slices.Equal(want.CRC, got.CRC) {
			return tartarus.Errorf(tartarus.Corrupt, "snapshot file %s is damaged", filepath.Base(f.Name()))
		}
	}
	return nil
}

// checksum reads a file without moving its offset, on as many processors as there are.
func checksum(ctx context.Context, f *os.File) (fileSum, error) {
	info, err := f.Stat()
	if err != nil {
		return fileSum{}, err
	}
	out := fileSum{Size: info.Size(), CRC: make([]uint32, (info.Size()+chunk-1)/chunk)}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		first error
	)
	workers := min(runtime.GOMAXPROCS(0), len(out.CRC))
	for w := range workers {
		wg.Go(func() {
			buf := make([]byte, chunk)
			for i := w; i < len(out.CRC); i += workers {
				err := ctx.Err()
				n := 0
				if err == nil {
					n, err = f.ReadAt(buf[:min(chunk, out.Size-int64(i)*chunk)], int64(i)*chunk)
				}
				if err != nil {
					mu.Lock()
					first = errors.Join(first, err)
					mu.Unlock()
					return
				}
				out.CRC[i] = crc32.Checksum(buf[:n], castagnoli)
			}
		})
	}
	wg.Wait()
	if first != nil {
		return fileSum{}, fmt.Errorf("read %s: %w", filepath.Base(f.Name()), first)
	}
	return out, nil
}

// imageID tells images apart without reading all of them, by their size and their first 64 KiB: the superblock, with
// its own checksum and the counts of everything, and the inodes that follow. That a snapshot is used with its own
// template is for the owner of both to see to; this catches mistakes.
func imageID(path string) (string, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", tartarus.Errorf(tartarus.NotFound, "root file system %s does not exist", filepath.Base(path))
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	fmt.Fprintf(h, "%d\n", info.Size())
	if _, err := io.Copy(h, io.LimitReader(f, 64<<10)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
