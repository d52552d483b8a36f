package snapshot

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"path/filepath"
	"testing"
)

// FuzzManifest holds that no manifest, also one whose digest is right, names a file outside its folder or chunks that do not make up their file.
func FuzzManifest(f *testing.F) {
	for _, seed := range []string{
		`{"format":1,"id":"i1","kind":"sandbox","files":[{"name":"a","size":3,"chunks":[{"size":3}]}],"hashed":true}`,
		`{"format":1,"id":"i1","files":[{"name":"../a","size":1}]}`, `{"format":1,"id":"i1","files":[{"name":"a","size":-1}]}`,
		`{"format":1,"id":"i1","files":[{"name":"a","size":9223372036854775807,"chunks":[]}],"hashed":true}`, `{"format":9,"id":"i1"}`, `null`, `[]`, `{`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, inner []byte) {
		sum := sha256.Sum256(inner)
		raw, err := json.Marshal(sealed{Sum: hex.EncodeToString(sum[:]), Manifest: inner})
		if err != nil {
			raw = inner // not even JSON: then as it is
		}
		m, err := decodeManifest("i1", raw)
		if err != nil {
			return
		}
		for _, file := range m.Files {
			if !filepath.IsLocal(file.Name) || filepath.Base(file.Name) != file.Name || file.Size < 0 {
				t.Fatalf("accepted the file %q of %d bytes", file.Name, file.Size)
			}
			held := int64(0)
			for _, c := range file.Chunks {
				if m.Hashed && (c.Size <= 0 || c.Size > ChunkSize || c.Sum != "" && len(c.Sum) != 64) {
					t.Fatalf("accepted the chunk %+v", c)
				}
				held += c.Size
			}
			if m.Hashed && held != file.Size {
				t.Fatalf("accepted chunks of %d bytes for a file of %d", held, file.Size)
			}
		}
	})
}
