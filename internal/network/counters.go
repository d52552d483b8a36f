package network

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/tartarus-sandbox/tartarus"
	"golang.org/x/sys/unix"
)

// Counters are what a slot's sandbox was refused since it was acquired.
type Counters struct {
	DroppedPackets uint64 `json:"droppedPackets"`
	DroppedBytes   uint64 `json:"droppedBytes"`
}

// counters asks for one member of the counting set.
func (f *firewall) counters(name string) (Counters, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return Counters{}, fmt.Errorf("open netfilter socket: %w", err)
	}
	defer conn.Close()
	var b batch
	b.elements(unix.NFT_MSG_GETSETELEM, 0, setDrops, []element{{key: ifKey(name)}})
	if b.err != nil {
		return Counters{}, fmt.Errorf("encode question: %w", b.err)
	}
	if err := conn.SetDeadline(time.Now().Add(rulesTimeout)); err != nil {
		return Counters{}, fmt.Errorf("set deadline: %w", err)
	}
	answer, err := conn.Execute(b.msgs[0])
	if err != nil {
		return Counters{}, fmt.Errorf("read counters of %s: %w", name, err)
	}
	for _, m := range answer {
		if c, ok := findCounter(m.Data[4:]); ok {
			return c, nil
		}
	}
	return Counters{}, tartarus.Errorf(tartarus.NotFound, "no counters for %s", name)
}

// tried counts, by slot name, the different addresses and ports that were refused in the last minute.
func (f *firewall) tried() (map[string]int, error) {
	keys, err := listMembers(setTried)
	if err != nil {
		return nil, err
	}
	out := map[string]int{}
	for _, key := range keys {
		if len(key) > unix.IFNAMSIZ {
			out[text(key[:unix.IFNAMSIZ])]++
		}
	}
	return out, nil
}

// findCounter looks for the counter expression among the nested attributes of a set member.
func findCounter(b []byte) (Counters, bool) {
	dig := func(b []byte, path ...uint16) []byte {
		for _, want := range path {
			ad, err := netlink.NewAttributeDecoder(b)
			if err != nil {
				return nil
			}
			b = nil
			for ad.Next() {
				if ad.Type() == want {
					b = ad.Bytes()
					break
				}
			}
		}
		return b
	}
	data := dig(b, unix.NFTA_SET_ELEM_LIST_ELEMENTS, unix.NFTA_LIST_ELEM, unix.NFTA_SET_ELEM_EXPR, unix.NFTA_EXPR_DATA)
	bytes, packets := dig(data, unix.NFTA_COUNTER_BYTES), dig(data, unix.NFTA_COUNTER_PACKETS)
	if len(bytes) != 8 || len(packets) != 8 {
		return Counters{}, false
	}
	return Counters{DroppedBytes: binary.BigEndian.Uint64(bytes), DroppedPackets: binary.BigEndian.Uint64(packets)}, true
}
