package manifest

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/tartarus-sandbox/tartarus"
)

// TestManifestRefuses makes manifests that are whole but not for this driver.
func TestManifestRefuses(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	id, err := ImageID(image)
	if err != nil {
		t.Fatal(err)
	}
	want := Manifest{Driver: "one", Version: "v1.0.0 amd64", RootFS: id, Needs: map[string]string{"processor": "x"}}
	good := want
	good.Format = Format
	for what, c := range map[string]struct {
		change func(*Manifest)
		kind   tartarus.Kind
	}{
		"good":    {func(*Manifest) {}, ""},
		"version": {func(m *Manifest) { m.Version = "v0.0.0 amd64" }, tartarus.Unsupported},
		"driver":  {func(m *Manifest) { m.Driver = "qemu" }, tartarus.Unsupported},
		"format":  {func(m *Manifest) { m.Format++ }, tartarus.Unsupported},
		"need":    {func(m *Manifest) { m.Needs = map[string]string{"processor": "y"} }, tartarus.Unsupported},
		"no need": {func(m *Manifest) { m.Needs = nil }, tartarus.Unsupported},
		"image":   {func(m *Manifest) { m.RootFS = "other" }, tartarus.Invalid},
	} {
		m, dir := good, t.TempDir()
		c.change(&m)
		if err := m.Write(dir); err != nil {
			t.Fatal(err)
		}
		got, err := Read(dir)
		if err == nil {
			err = got.Fits(want)
		}
		if (err == nil) != (c.kind == "") || err != nil && tartarus.KindOf(err) != c.kind {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, content := range map[string]string{
		"empty": "", "not json": "{", "wrong sum": `{"crc":1,"manifest":{}}`, "more": `{"crc":0,"manifest":{}} {}`, "list": "[]",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, Name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(dir); !tartarus.Is(err, tartarus.Corrupt) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestSparseFilesHaveTheSumsOfFullOnes reads one content from a file with holes and from one without.
func TestSparseFilesHaveTheSumsOfFullOnes(t *testing.T) {
	dir := t.TempDir()
	const size = 5*chunk + 123
	data := map[int64][]byte{0: []byte("begin"), 3*chunk - 2: []byte("over the edge"), size - 3: []byte("end")}
	full := make([]byte, size)
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer sparse.Close()
	if err := sparse.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for at, b := range data {
		copy(full[at:], b)
		if _, err := sparse.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "full"), full, 0o600); err != nil {
		t.Fatal(err)
	}
	whole, err := os.Open(filepath.Join(dir, "full"))
	if err != nil {
		t.Fatal(err)
	}
	defer whole.Close()
	a, err := Checksum(t.Context(), sparse)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Checksum(t.Context(), whole)
	if err != nil || a.Size != b.Size || !slices.Equal(a.CRC, b.CRC) {
		t.Errorf("sums differ: %+v and %+v, %v", a, b, err)
	}
	a.Name = "sparse"
	m := Manifest{Files: []FileSum{a}}
	if err := m.Verify(t.Context(), []*os.File{sparse}); err != nil {
		t.Error(err)
	}
	if _, err := sparse.WriteAt(bytes.Repeat([]byte{0}, 5), 0); err != nil {
		t.Fatal(err)
	}
	if err := m.Verify(t.Context(), []*os.File{sparse}); !tartarus.Is(err, tartarus.Corrupt) {
		t.Errorf("zeros over the beginning: %v", err)
	}
}
