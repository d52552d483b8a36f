package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tartarus-sandbox/tartarus"
)

// object is the least of an ELF file that has a section .modinfo.
func object(info ...string) []byte {
	data := strings.Join(info, "\x00") + "\x00"
	names := "\x00.modinfo\x00.shstrtab\x00"
	h := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: 64, Shentsize: 64, Shnum: 3, Shstrndx: 2,
		Shoff: uint64(64 + len(data) + len(names)),
	}
	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, h)
	b.WriteString(data + names)
	_ = binary.Write(&b, binary.LittleEndian, []elf.Section64{
		{},
		{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: 64, Size: uint64(len(data)), Addralign: 1},
		{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: uint64(64 + len(data)), Size: uint64(len(names)), Addralign: 1},
	})
	return b.Bytes()
}

func TestResolve(t *testing.T) {
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
	put("kernel/a/top-level.ko", object("depends=left,right", "softdep=pre: soft absent post: late"))
	put("kernel/a/left.ko", object("depends=bottom"))
	put("kernel/b/right.ko", object("depends=bottom,inside"))
	put("kernel/b/bottom.ko", object("depends=", "softdep=pre: top_level"))
	put("kernel/b/soft.ko", object())
	put("kernel/b/late.ko", object())
	put("kernel/b/broken.ko", object("depends=absent"))
	put("modules.builtin", []byte("kernel/x/inside.ko\n"))
	names := func(wanted ...string) ([]string, error) {
		m, err := openModules(dir)
		if err != nil {
			t.Fatal(err)
		}
		list, err := m.resolve(wanted)
		var out []string
		for _, l := range list {
			out = append(out, l.Name)
		}
		return out, err
	}
	check := func() {
		t.Helper()
		got, err := names("top_level", "inside")
		if err != nil || len(got) != 5 || slices.Index(got, "bottom") > slices.Index(got, "left") || slices.Index(got, "bottom") > slices.Index(got, "right") ||
			got[4] != "top_level" || !slices.Contains(got, "soft") {
			t.Errorf("%v, %v", got, err)
		}
		if _, err := names("broken"); !tartarus.Is(err, tartarus.NotFound) || !strings.Contains(err.Error(), "broken needs absent") {
			t.Errorf("%v", err)
		}
	}
	check() // by what the modules say
	put("modules.dep", []byte("kernel/a/top-level.ko: kernel/b/right.ko kernel/a/left.ko kernel/b/bottom.ko\nkernel/a/left.ko: kernel/b/bottom.ko\n"+
		"kernel/b/right.ko: kernel/b/bottom.ko\nkernel/b/bottom.ko:\nkernel/b/soft.ko:\nkernel/b/broken.ko: kernel/b/absent.ko\n../../etc/passwd:\n"))
	check() // by depmod's file
	put("kernel/b/broken.ko", []byte("no module"))
	if _, err := names("broken"); !tartarus.Is(err, tartarus.Invalid) {
		t.Errorf("%v", err)
	}
}

func TestInitramfs(t *testing.T) {
	var a, b bytes.Buffer
	agent := []byte("the agent")
	for _, w := range []*bytes.Buffer{&a, &b} {
		if err := (Kernel{}).Initramfs(w, agent); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) || a.Len()%4 != 0 {
		t.Errorf("the same input gives %d and %d bytes", a.Len(), b.Len())
	}
	files := read(t, a.Bytes())
	if string(files["init"]) != "the agent" || files["modules/order"] == nil || files["dev/console"] == nil {
		t.Errorf("%q", files)
	}
}

// read takes a cpio archive apart.
func read(t *testing.T, b []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	field := func(i int) (v int) {
		for _, c := range b[6+8*i : 14+8*i] {
			v = v<<4 | strings.IndexByte("0123456789ABCDEF", c)
		}
		return v
	}
	for {
		if !bytes.HasPrefix(b, []byte("070701")) {
			t.Fatalf("no header: %.20q", b)
		}
		name := string(b[110 : 110+field(11)-1])
		at := (110 + field(11) + 3) &^ 3
		size := field(6)
		if name == "TRAILER!!!" {
			return files
		}
		files[name] = append([]byte{}, b[at:at+size]...)
		b = b[(at+size+3)&^3:]
	}
}
