package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/tartarus-sandbox/tartarus"
)

const (
	manifestName   = "manifest.json"
	manifestFormat = 1

	// manifestMost bounds what is read as a manifest: a chunk is 100 bytes of JSON, so this is for snapshots of 640 GB.
	manifestMost = 16 << 20
)

// sealed is a manifest as it is stored: damage to the manifest itself must be seen too.
type sealed struct {
	Sum      string          `json:"sha256"`
	Manifest json.RawMessage `json:"manifest"`
}

func (m Manifest) encode() ([]byte, error) {
	inner, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	sum := sha256.Sum256(inner)
	return json.Marshal(sealed{Sum: hex.EncodeToString(sum[:]), Manifest: inner})
}

// decodeManifest reads a manifest and holds it to what a manifest may say: its names become file names.
func decodeManifest(id string, b []byte) (Manifest, error) {
	var s sealed
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return Manifest{}, tartarus.Errorf(tartarus.Corrupt, "manifest of snapshot %s is damaged: %w", id, err)
	}
	sum := sha256.Sum256(s.Manifest)
	if hex.EncodeToString(sum[:]) != s.Sum {
		return Manifest{}, tartarus.Errorf(tartarus.Corrupt, "manifest of snapshot %s is damaged: its digest is another", id)
	}
	var m Manifest
	if err := json.Unmarshal(s.Manifest, &m); err != nil {
		return Manifest{}, tartarus.Errorf(tartarus.Corrupt, "manifest of snapshot %s is damaged: %w", id, err)
	}
	if m.Format != manifestFormat {
		return Manifest{}, tartarus.Errorf(tartarus.Unsupported, "snapshot %s has format %d, this program reads %d", id, m.Format, manifestFormat)
	}
	if m.ID != id {
		return Manifest{}, tartarus.Errorf(tartarus.Corrupt, "manifest of snapshot %s is that of %q", id, m.ID)
	}
	return m, m.plausible()
}

// plausible reports whether the files of a manifest can be those of a snapshot.
func (m Manifest) plausible() error {
	for _, f := range m.Files {
		if !filepath.IsLocal(f.Name) || f.Name != filepath.Base(f.Name) || strings.HasPrefix(f.Name, ".") || f.Size < 0 {
			return tartarus.Errorf(tartarus.Corrupt, "snapshot %s has a file %.80q, which cannot be", m.ID, f.Name)
		}
		if !m.Hashed {
			continue
		}
		left := f.Size
		for _, c := range f.Chunks {
			if c.Size != min(left, ChunkSize) || c.Size <= 0 || c.Sum != "" && !validSum(c.Sum) {
				return tartarus.Errorf(tartarus.Corrupt, "file %s of snapshot %s has a chunk that cannot be", f.Name, m.ID)
			}
			left -= c.Size
		}
		if left != 0 {
			return tartarus.Errorf(tartarus.Corrupt, "file %s of snapshot %s lacks chunks", f.Name, m.ID)
		}
	}
	return nil
}

func validSum(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == sha256.Size && s == strings.ToLower(s)
}

func readManifest(dir, id string) (Manifest, error) {
	f, err := os.Open(filepath.Join(dir, manifestName))
	if errors.Is(err, fs.ErrNotExist) {
		return Manifest{}, tartarus.Errorf(tartarus.NotFound, "snapshot %s is not on this node", id)
	}
	if err != nil {
		return Manifest{}, fmt.Errorf("open manifest: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, manifestMost))
	if err != nil {
		return Manifest{}, fmt.Errorf("read manifest of snapshot %s: %w", id, err)
	}
	return decodeManifest(id, b)
}

// writeManifest replaces a manifest so that after a crash there is the old or the new one.
func writeManifest(dir string, m Manifest) error {
	b, err := m.encode()
	if err != nil {
		return err
	}
	name := filepath.Join(dir, manifestName)
	f, err := os.OpenFile(name+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	_, err = f.Write(b)
	if !m.Scratch {
		err = errors.Join(err, f.Sync())
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(name+".new", name)
	}
	if err == nil && !m.Scratch {
		err = syncPath(dir)
	}
	if err != nil {
		return fmt.Errorf("write manifest: %w", errors.Join(err, os.RemoveAll(name+".new")))
	}
	return nil
}

// syncPath makes a file, or the names in a folder, durable.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
