package kernel_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/kernel"
)

// program is an ELF file that says it is a Linux: this test binary with a banner behind it.
func program(t *testing.T, more string) []byte {
	t.Helper()
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	return append(b, "Linux version 6.1.2-test (somebody) "+more...)
}

func pack(t *testing.T, name string, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	switch name {
	case "gzip":
		w = gzip.NewWriter(&out)
	case "zstd":
		w, _ = zstd.NewWriter(&out)
	case "lz4":
		l := lz4.NewWriter(&out)
		if err := l.Apply(lz4.LegacyOption(true)); err != nil {
			t.Fatal(err)
		}
		w = l
	case "xz", "xz-bcj":
		args := []string{"-c", "--check=crc32"}
		if name == "xz-bcj" {
			args = append(args, "--x86", "--lzma2")
		}
		cmd := exec.Command("xz", args...)
		cmd.Stdin = bytes.NewReader(data)
		b, err := cmd.Output()
		if err != nil {
			t.Skipf("needs xz: %v", err)
		}
		return b
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// bzImage puts a payload into a file as the kernel's build does.
func bzImage(payload []byte, size int) []byte {
	head := make([]byte, 1024+512)
	head[0x1f1] = 2 // sectors of set-up code
	head[0x1fe], head[0x1ff] = 0x55, 0xaa
	copy(head[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(head[0x206:], 0x20f)
	binary.LittleEndian.PutUint16(head[0x20e:], 0x300)
	copy(head[0x500:], "6.1.2-test (somebody)\x00")
	payload = binary.LittleEndian.AppendUint32(bytes.Clone(payload), uint32(size))
	binary.LittleEndian.PutUint32(head[0x248:], 100)
	binary.LittleEndian.PutUint32(head[0x24c:], uint32(len(payload)))
	head = append(head, make([]byte, 100)...)
	return append(append(head, payload...), "something after it"...)
}

func TestExtract(t *testing.T) {
	want := program(t, "")
	for _, name := range []string{"gzip", "zstd", "lz4", "xz", "xz-bcj"} {
		t.Run(name, func(t *testing.T) {
			got, err := kernel.Extract(bzImage(pack(t, name, want), len(want)))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d of %d bytes, %v", len(got), len(want), err)
			}
		})
	}
	if got, err := kernel.Extract(want); err != nil || !bytes.Equal(got, want) {
		t.Errorf("ELF: %v", err)
	}
}

func TestExtractRefuses(t *testing.T) {
	elf := program(t, "")
	whole := bzImage(pack(t, "gzip", elf), len(elf))
	outside := bytes.Clone(whole)
	binary.LittleEndian.PutUint32(outside[0x248:], 1<<31)
	cut := bzImage(pack(t, "gzip", elf)[:1000], len(elf))
	for name, data := range map[string][]byte{
		"nothing": nil, "text": []byte("hello"), "cut ELF": elf[:len(elf)/2], "payload outside": outside, "cut payload": cut,
		"not a kernel": bzImage(pack(t, "gzip", []byte("hello")), 5), "lzo": bzImage([]byte("\x89LZO\x00\x00\x00"), 1),
	} {
		if _, err := kernel.Extract(data); tartarus.KindOf(err) != tartarus.Invalid && tartarus.KindOf(err) != tartarus.Unsupported {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzExtract(f *testing.F) {
	f.Add(bzImage([]byte("\x1f\x8b\x08\x00\x00\x00"), 5))
	f.Add(bzImage([]byte("\x02\x21\x4c\x18\x00"), 5))
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(_ *testing.T, data []byte) { _, _ = kernel.Extract(data) })
}

func TestOpenAndCheck(t *testing.T) {
	dir := t.TempDir()
	put := func(name string, data []byte) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := kernel.Open(dir); !tartarus.Is(err, tartarus.NotFound) {
		t.Errorf("an empty folder: %v", err)
	}
	elf := program(t, "")
	put("vmlinuz-5.10.1", bzImage(pack(t, "gzip", elf), len(elf)))
	put("vmlinuz-5.9.30", []byte("an older one, which is not looked at"))
	k, err := kernel.Open(dir)
	if err != nil || filepath.Base(k.Image) != "vmlinuz-5.10.1" || k.Version != "6.1.2-test" || k.Modules != "" {
		t.Errorf("%+v, %v", k, err)
	}
	if _, err := kernel.Check(k.Image); !tartarus.Is(err, tartarus.Unsupported) {
		t.Errorf("no configuration: %v", err)
	}
	put("config-6.1.2-test", []byte("CONFIG_EROFS_FS=m\nCONFIG_UNIX=y\n# CONFIG_INET is not set\n"))
	r, err := kernel.Check(k.Image)
	if err != nil || r.OK {
		t.Errorf("%+v, %v", r, err)
	}
	state := func(option string) (f kernel.Finding) {
		for _, f := range r.Findings {
			if f.Option == option {
				return f
			}
		}
		t.Fatalf("nothing about %s", option)
		return f
	}
	if f := state("CONFIG_EROFS_FS"); f.OK || f.Value != "m" {
		t.Errorf("a module without modules: %+v", f)
	}
	put("modules/6.1.2-test/modules.builtin", nil)
	if r, err = kernel.Check(k.Image); err != nil || !state("CONFIG_EROFS_FS").OK || state("CONFIG_INET").OK || !state("CONFIG_UNIX").OK {
		t.Errorf("%+v, %v", r, err)
	}
	// A kernel that carries its configuration says the truth about itself; what lies beside it is not asked.
	var all strings.Builder
	for _, f := range r.Findings {
		fmt.Fprintf(&all, "%s=y\n", f.Option)
	}
	own := program(t, "IKCFG_ST"+string(pack(t, "gzip", []byte(all.String())))+"IKCFG_ED")
	put("vmlinux", own)
	if k, err = kernel.Open(dir); err != nil || filepath.Base(k.Image) != "vmlinux" {
		t.Errorf("%+v, %v", k, err)
	}
	if r, err = kernel.Check(k.Image); err != nil || !r.OK {
		t.Errorf("%+v, %v", r, err)
	}
}
