package erofs

import (
	"encoding/binary"
	"hash/crc32"
	"maps"
	"slices"
	"strings"

	"github.com/tartarus-sandbox/tartarus"
)

// Numbers of the on-disk format: https://erofs.docs.kernel.org/en/latest/core_ondisk.html
const (
	blockBits  = 12 // gVisor takes multiples of the page size only, the kernel at most the page size
	blockSize  = 1 << blockBits
	superAt    = 1024
	superSize  = 128
	superMagic = 0xe0f5e1e2
	slotSize   = 32 // inode numbers count these
	inodeSize  = 64 // the extended form
	direntSize = 12

	compatChecksum = 0x1
	compatMtime    = 0x2

	layoutPlain  = 0
	layoutInline = 2

	// firstSlot is the root's inode number. Not 0, because a directory entry with the number 0 counts
	// as deleted for the C library.
	firstSlot = 2
)

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }

func putSuper(block []byte, blocks, metaBlock uint32, inodes int) {
	le, s := binary.LittleEndian, block[superAt:]
	le.PutUint32(s[0:], superMagic)
	le.PutUint32(s[8:], compatChecksum|compatMtime)
	s[12] = blockBits
	le.PutUint16(s[14:], firstSlot)
	le.PutUint64(s[16:], uint64(inodes))
	le.PutUint32(s[36:], blocks)
	le.PutUint32(s[40:], metaBlock)
	// The checksum covers the rest of the block, without the final inversion of the usual CRC-32C.
	le.PutUint32(s[4:], ^crc32.Checksum(s[:blockSize-superAt], crc32.MakeTable(crc32.Castagnoli)))
}

func putInode(b []byte, n *inode, links uint32) {
	le := binary.LittleEndian
	le.PutUint16(b[0:], 1|uint16(n.layout)<<1)
	if len(n.xattrs) > 0 {
		le.PutUint16(b[2:], uint16((len(n.xattrs)-12)/4+1))
	}
	le.PutUint16(b[4:], uint16(n.Mode))
	le.PutUint64(b[8:], uint64(n.size))
	le.PutUint32(b[16:], n.union())
	le.PutUint32(b[20:], n.serial)
	le.PutUint32(b[24:], n.UID)
	le.PutUint32(b[28:], n.GID)
	le.PutUint64(b[32:], uint64(n.ModTime.Unix()))
	le.PutUint32(b[40:], uint32(n.ModTime.Nanosecond()))
	le.PutUint32(b[44:], links)
	copy(b[inodeSize:], n.xattrs)
	copy(b[inodeSize+len(n.xattrs):], n.inline)
}

// union is the field that holds a device's number or the first block of the data.
func (n *inode) union() uint32 {
	switch n.Type() {
	case TypeBlock, TypeChar:
		return n.Minor&0xff | n.Major<<8 | (n.Minor&^uint32(0xff))<<12
	}
	return uint32(n.dataAt >> blockBits)
}

var xattrPrefixes = []struct {
	prefix string
	index  byte
}{
	{"user.", 1},
	{"system.posix_acl_access", 2},
	{"system.posix_acl_default", 3},
	{"trusted.", 4},
	{"security.", 6},
}

// maxXattrs is what the kernel reads of one inode's inline attributes: a 16-bit count of 4-byte units.
const maxXattrs = 0xffff * 4

func encodeXattrs(path string, attrs map[string]string) ([]byte, error) {
	out := make([]byte, 12)
next:
	for _, name := range slices.Sorted(maps.Keys(attrs)) {
		value := attrs[name]
		for _, p := range xattrPrefixes {
			rest, ok := strings.CutPrefix(name, p.prefix)
			if !ok {
				continue
			}
			if len(rest) > 255 || len(value) > 0xffff {
				return nil, tartarus.Errorf(tartarus.TooLarge, "extended attribute %.40q of %s is too long", name, path)
			}
			out = append(out, byte(len(rest)), p.index, byte(len(value)), byte(len(value)>>8))
			out = append(append(out, rest...), value...)
			for len(out)%4 != 0 {
				out = append(out, 0)
			}
			continue next
		}
		return nil, tartarus.Errorf(tartarus.Unsupported, "extended attribute %.40q of %s is of no class that EROFS stores", name, path)
	}
	if len(out) > maxXattrs {
		return nil, tartarus.Errorf(tartarus.TooLarge, "extended attributes of %s take more than %d bytes", path, maxXattrs)
	}
	return out, nil
}

// direntKinds are the type codes in directory entries, by type bits >> 12.
var direntKinds = map[uint32]byte{
	TypeRegular: 1, TypeDir: 2, TypeChar: 3, TypeBlock: 4, TypeFIFO: 5, TypeSocket: 6, TypeSymlink: 7,
}

// encodeDir writes a directory's entries, which are sorted by name: every block holds the heads
// of its entries and then their names, and only the last block is not filled up.
func encodeDir(entries []dirent) []byte {
	var out []byte
	for len(entries) > 0 {
		n, used := 0, 0
		for n < len(entries) && used+direntSize+len(entries[n].name) <= blockSize {
			used += direntSize + len(entries[n].name)
			n++
		}
		at := len(out)
		out = append(out, make([]byte, n*direntSize)...)
		for i, e := range entries[:n] {
			head := out[at+i*direntSize:]
			binary.LittleEndian.PutUint64(head, e.inode.slot)
			binary.LittleEndian.PutUint16(head[8:], uint16(len(out)-at))
			head[10] = direntKinds[e.inode.Type()]
			out = append(out, e.name...)
		}
		if entries = entries[n:]; len(entries) > 0 {
			out = append(out, make([]byte, blockSize-(len(out)-at))...)
		}
	}
	return out
}
