// Package manifest says what a machine's snapshot is, how its files must look, and what it fits: every driver writes one
// beside the files of a snapshot, last. A snapshot whose manifest is missing, damaged or does not match its files is
// never restored.
package manifest

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
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	"github.com/tartarus-sandbox/tartarus"
)

const (
	// Name is the manifest's own file in a snapshot's folder.
	Name = "manifest.json"

	// Format is the version of the manifest that this program writes and reads.
	Format = 1

	// most bounds what is read as a manifest: a checksum is 11 bytes of JSON, so this is for
	// snapshots of 1.5 TB.
	most = 16 << 20

	// chunk is how much one checksum covers. CRC-32C finds every burst of up to 32 bits in it and misses other
	// damage once in 4 billion; it runs at memory speed where SHA-256 would cost more than the restore. Against
	// forgery the store that keeps snapshots has its own digests.
	chunk = 1 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Manifest says what a snapshot is and how its files must look.
type Manifest struct {
	Format  int               `json:"format"`
	Driver  string            `json:"driver"`
	Version string            `json:"version"`          // of the runtime that wrote it
	RootFS  string            `json:"rootfs"`           // which image it stands on, see ImageID
	Needs   map[string]string `json:"needs,omitempty"`  // what else must be as it was, by its name in a sentence
	Base    string            `json:"base,omitempty"`   // ID of the snapshot that this one only holds the changes to
	Stands  string            `json:"stands,omitempty"` // ID of the snapshot that this one, merged of a chain, is the whole form of
	Rates   string            `json:"rates,omitempty"`  // what its devices were held to, in the driver's words: whoever restores it may hold them to something else
	Files   []FileSum         `json:"files"`
}

// FileSum is a file as it must look.
type FileSum struct {
	Name string   `json:"name"`
	Size int64    `json:"size"`
	CRC  []uint32 `json:"crc"` // of each chunk
}

// sealed is the manifest as it is stored: damage to the manifest itself must be seen too.
type sealed struct {
	CRC      uint32          `json:"crc"`
	Manifest json.RawMessage `json:"manifest"`
}

// Write puts the manifest into dir. Syncing it is for whoever keeps the snapshot.
func (m Manifest) Write(dir string) error {
	inner, err := json.Marshal(m)
	if err != nil {
		return err
	}
	b, err := json.Marshal(sealed{CRC: crc32.Checksum(inner, castagnoli), Manifest: inner})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, Name), b, 0o600)
}

// ID tells this snapshot from every other: it covers the checksums of all files.
func (m Manifest) ID() string {
	inner, err := json.Marshal(m)
	if err != nil {
		panic(err) // strings and numbers only
	}
	sum := sha256.Sum256(inner)
	return hex.EncodeToString(sum[:])
}

// Chain is the ID that a snapshot which builds on this one has as its Base.
func (m Manifest) Chain() string {
	if m.Stands != "" {
		return m.Stands
	}
	return m.ID()
}

// Read reads the manifest in dir: tartarus.Corrupt when there is none or it is damaged.
func Read(dir string) (Manifest, error) {
	var m Manifest
	f, err := os.Open(filepath.Join(dir, Name))
	if errors.Is(err, fs.ErrNotExist) {
		return m, tartarus.Errorf(tartarus.Corrupt, "snapshot has no manifest")
	}
	if err != nil {
		return m, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most))
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

// Fits reports whether a runtime that would write a manifest like want can use the snapshot. Another driver, version or need is
// tartarus.Unsupported, another image tartarus.Invalid.
func (m Manifest) Fits(want Manifest) error {
	switch {
	case m.Driver != want.Driver:
		return tartarus.Errorf(tartarus.Unsupported, "snapshot is of runtime %q, this is %q", m.Driver, want.Driver)
	case m.Format != Format:
		return tartarus.Errorf(tartarus.Unsupported, "snapshot has format %d, this program reads %d", m.Format, Format)
	case m.Version != want.Version:
		return tartarus.Errorf(tartarus.Unsupported, "snapshot was made by version %s, this is %s", m.Version, want.Version)
	}
	for _, what := range slices.Sorted(maps.Keys(want.Needs)) {
		if m.Needs[what] != want.Needs[what] {
			return tartarus.Errorf(tartarus.Unsupported, "snapshot needs %s %q, this is %q", what, m.Needs[what], want.Needs[what])
		}
	}
	if m.RootFS != want.RootFS {
		return tartarus.Errorf(tartarus.Invalid, "snapshot was made on another root file system")
	}
	return nil
}

// Verify compares files, in the manifest's order, with the manifest.
func (m Manifest) Verify(ctx context.Context, files []*os.File) error {
	if len(m.Files) != len(files) {
		return tartarus.Errorf(tartarus.Corrupt, "snapshot manifest lists %d files", len(m.Files))
	}
	for i, f := range files {
		want := m.Files[i]
		got, err := Checksum(ctx, f)
		if err != nil {
			return err
		}
		if want.Name != filepath.Base(f.Name()) || want.Size != got.Size || !slices.Equal(want.CRC, got.CRC) {
			return tartarus.Errorf(tartarus.Corrupt, "snapshot file %s is damaged", filepath.Base(f.Name()))
		}
	}
	return nil
}

// Checksum reads a file on as many processors as there are, leaving out what a sparse file does not hold. Its Name is for the caller to set.
func Checksum(ctx context.Context, f *os.File) (FileSum, error) {
	info, err := f.Stat()
	if err != nil {
		return FileSum{}, err
	}
	out := FileSum{Size: info.Size(), CRC: make([]uint32, (info.Size()+chunk-1)/chunk)}
	holds, err := extents(f, out.Size)
	if err != nil {
		return FileSum{}, fmt.Errorf("read %s: %w", filepath.Base(f.Name()), err)
	}
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
				if size := min(chunk, out.Size-int64(i)*chunk); size == chunk && !holds.any(int64(i)*chunk, size) {
					out.CRC[i] = emptyCRC()
					continue
				}
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
		return FileSum{}, fmt.Errorf("read %s: %w", filepath.Base(f.Name()), first)
	}
	return out, nil
}

// ImageID tells images apart without reading all of them, by their size and their first 64 KiB: the superblock, with
// its own checksum and the counts of everything, and the inodes that follow. That a snapshot is used with its own
// template is for the owner of both to see to; this catches mistakes.
func ImageID(path string) (string, error) {
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
