package payload

import (
	"bytes"
	"debug/elf"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestCodeIsWhatTheSourceSays assembles payload.asm. After a change, put what it prints into code.go.
func TestCodeIsWhatTheSourceSays(t *testing.T) {
	for _, tool := range []string{"as", "ld"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: apt-get install binutils", tool)
		}
	}
	dir := t.TempDir()
	object, linked := filepath.Join(dir, "o"), filepath.Join(dir, "elf")
	for _, argv := range [][]string{
		{"as", "--64", "payload.asm", "-o", object},
		{"ld", "-m", "elf_x86_64", "-Ttext=0x1000000", "--omagic", "--no-warn-rwx-segments", object, "-o", linked},
	} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", argv, err, out)
		}
	}
	f, err := elf.Open(linked)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := f.Section(".text").Data()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, code) {
		t.Errorf("code.go is not payload.asm any more, which assembles to\n%#v", got)
	}
}

func TestELF(t *testing.T) {
	f, err := elf.NewFile(bytes.NewReader(ELF()))
	if err != nil {
		t.Fatal(err)
	}
	p := f.Progs[0]
	b := make([]byte, p.Filesz)
	if _, err := p.ReadAt(b, 0); err != nil || f.Entry != base || p.Paddr != base || !bytes.Equal(b, code) {
		t.Errorf("%+v %+v, %v", f.FileHeader, p.ProgHeader, err)
	}
}
