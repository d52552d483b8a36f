package handover

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"net"

	"github.com/tartarus-sandbox/tartarus"
)

// EtherType is that of our frames: the first of IEEE 802's local experimental ones. No host routes them, and no switch of ours joins
// two sandboxes, so that what arrives in a guest comes from the host's end of its own cable.
const EtherType = 0x88b5

const (
	magic      = "TART"
	headerSize = 14
	nonceSize  = 16
	prefixSize = len(magic) + 1 + nonceSize + 2 // magic, kind, nonce, length of the body

	tell = 1 // host to guest: be this machine
	done = 2 // guest to host: I am
)

// MaxFrame is the largest frame: an Ethernet frame of the smallest MTU in use.
const MaxFrame = 1500

// broadcast is where frames go: a restored guest has its old hardware address still.
var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// frame is one message.
type frame struct {
	kind  byte
	nonce [nonceSize]byte
	body  []byte
}

func (f frame) encode(from net.HardwareAddr) ([]byte, error) {
	if headerSize+prefixSize+len(f.body) > MaxFrame || len(from) != 6 {
		return nil, tartarus.Errorf(tartarus.TooLarge, "a handover of %d bytes does not fit into a frame", len(f.body))
	}
	b := make([]byte, 0, MaxFrame)
	b = append(b, broadcast...)
	b = append(b, from...)
	b = binary.BigEndian.AppendUint16(b, EtherType)
	b = append(b, magic...)
	b = append(b, f.kind)
	b = append(b, f.nonce[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(f.body)))
	return append(b, f.body...), nil
}

// parse reads a frame; ok is false for anything that is not one of ours.
func parse(b []byte) (f frame, ok bool) {
	if len(b) < headerSize+prefixSize || binary.BigEndian.Uint16(b[12:]) != EtherType {
		return f, false
	}
	b = b[headerSize:]
	if !bytes.HasPrefix(b, []byte(magic)) {
		return f, false
	}
	b = b[len(magic):]
	f.kind = b[0]
	copy(f.nonce[:], b[1:])
	b = b[1+nonceSize:]
	n := int(binary.BigEndian.Uint16(b))
	if b = b[2:]; n > len(b) { // short frames are filled up: more may follow
		return f, false
	}
	f.body = b[:n]
	return f, true
}

// Answer is the guest's part: given a frame that came in, it returns the machine to become, and the frame to send once that is done. ok
// is false for frames that are not for us.
func Answer(in []byte, own net.HardwareAddr) (m Machine, reply []byte, ok bool) {
	f, ok := parse(in)
	if !ok || f.kind != tell {
		return m, nil, false
	}
	m, err := decode(f.body)
	if err != nil || m.Interface == nil {
		return m, nil, false
	}
	reply, err = frame{kind: done, nonce: f.nonce}.encode(own)
	return m, reply, err == nil
}

// body is m for a frame: without what is decided at boot.
func (m Machine) body() ([]byte, error) {
	m.Args, m.Env, m.PIDs = nil, nil, 0
	b, err := json.Marshal(m)
	if err != nil {
		return nil, tartarus.Errorf(tartarus.Invalid, "describe machine: %w", err)
	}
	return b, nil
}
