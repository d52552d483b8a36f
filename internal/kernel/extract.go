package kernel

import (
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/therootcompany/xz"

	"github.com/tartarus-sandbox/tartarus"
)

// setup is what of a bzImage's header matters here. Offsets are those of Documentation/arch/x86/boot.rst.
type setup struct {
	payload, length int // where in the file the compressed kernel is
	version         int // where the version string is; 0 when this is no bzImage
}

// header reads the boot protocol's header; of anything else than a bzImage it returns zeros.
func header(data []byte) (s setup) {
	if len(data) < 0x250 || !bytes.Equal(data[0x202:0x206], []byte("HdrS")) || data[0x1fe] != 0x55 || data[0x1ff] != 0xaa {
		return s
	}
	sectors := int(data[0x1f1])
	if sectors == 0 {
		sectors = 4 // "for backwards compatibility, if the setup_sects field contains 0, the real value is 4"
	}
	s.version = int(binary.LittleEndian.Uint16(data[0x20e:])) + 0x200
	if binary.LittleEndian.Uint16(data[0x206:]) < 0x208 { // payload_offset exists since protocol 2.08
		return s
	}
	s.payload = (sectors+1)*512 + int(binary.LittleEndian.Uint32(data[0x248:]))
	s.length = int(binary.LittleEndian.Uint32(data[0x24c:]))
	return s
}

// compression is one way in which a kernel can be packed.
type compression struct {
	name  string
	magic string
	open  func(io.Reader) (io.Reader, error)
}

var compressions = []compression{
	{"gzip", "\x1f\x8b\x08", func(r io.Reader) (io.Reader, error) {
		z, err := gzip.NewReader(r)
		if err == nil {
			z.Multistream(false)
		}
		return z, err
	}},
	{"xz", "\xfd7zXZ\x00", func(r io.Reader) (io.Reader, error) { return xz.NewReader(r, xz.DefaultDictMax) }},
	{"zstd", "\x28\xb5\x2f\xfd", func(r io.Reader) (io.Reader, error) {
		return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxImage), zstd.WithDecoderMaxWindow(256<<20))
	}},
	{"lz4", "\x02\x21\x4c\x18", func(r io.Reader) (io.Reader, error) { return lz4.NewReader(r), nil }},
	{"bzip2", "BZh", func(r io.Reader) (io.Reader, error) { return bzip2.NewReader(r), nil }},
	{"lzma", "\x5d\x00\x00", nil},
	{"lzo", "\x89LZO", nil},
}

// Extract returns the ELF image in a kernel as distributions ship it: a bzImage, a compressed vmlinux, or the ELF file itself.
func Extract(data []byte) ([]byte, error) {
	if bytes.HasPrefix(data, []byte(elf.ELFMAG)) {
		return data, checkELF(data)
	}
	packed := data
	if h := header(data); h.version > 0 {
		if h.payload <= 0 || h.length <= 0 || h.payload > len(data) || h.length > len(data)-h.payload {
			return nil, tartarus.Errorf(tartarus.Invalid, "kernel image: its header points to a payload outside of it")
		}
		packed = data[h.payload : h.payload+h.length]
	}
	for _, c := range compressions {
		if !bytes.HasPrefix(packed, []byte(c.magic)) {
			continue
		}
		if c.open == nil {
			return nil, tartarus.Errorf(tartarus.Unsupported, "kernel image is compressed by %s; use one built with gzip, xz, zstd or lz4, or the uncompressed vmlinux", c.name)
		}
		out, err := unpack(c, packed)
		if err != nil {
			return nil, tartarus.Errorf(tartarus.Invalid, "kernel image: unpack %s: %w", c.name, err)
		}
		return out, checkELF(out)
	}
	return nil, tartarus.Errorf(tartarus.Invalid, "this is no kernel image: neither ELF nor bzImage, nor compressed in a known way")
}

// unpack reads one compressed stream. The kernel's build appends the unpacked size to it, which readers take for damage at the end:
// what came before is whole then, as the ELF file's own sizes confirm.
func unpack(c compression, packed []byte) ([]byte, error) {
	size := 0
	if len(packed) >= 4 {
		size = int(binary.LittleEndian.Uint32(packed[len(packed)-4:]))
	}
	r, err := c.open(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	if z, ok := r.(*zstd.Decoder); ok {
		defer z.Close()
	}
	var out bytes.Buffer
	if size > 0 && size <= maxImage && size/64 <= len(packed) {
		out.Grow(size + bytes.MinRead)
	}
	_, err = out.ReadFrom(io.LimitReader(r, maxImage+1))
	if out.Len() > maxImage {
		return nil, fmt.Errorf("it is larger than %d bytes", maxImage)
	}
	if err != nil && out.Len() != size {
		return nil, err
	}
	return out.Bytes(), nil
}

// checkELF makes sure that data is a whole program for a machine that we have guests for.
func checkELF(data []byte) error {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return tartarus.Errorf(tartarus.Invalid, "kernel image: %w", err)
	}
	if f.Class != elf.ELFCLASS64 || f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN || f.Machine != elf.EM_X86_64 && f.Machine != elf.EM_AARCH64 {
		return tartarus.Errorf(tartarus.Unsupported, "kernel image is an ELF file of type %s for %s, not a 64-bit kernel", f.Type, f.Machine)
	}
	loads := 0
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD {
			continue
		}
		loads++
		if p.Off > uint64(len(data)) || p.Filesz > uint64(len(data))-p.Off {
			return tartarus.Errorf(tartarus.Invalid, "kernel image is cut off")
		}
	}
	if loads == 0 {
		return tartarus.Errorf(tartarus.Invalid, "kernel image has nothing to load")
	}
	return nil
}
