package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// batch is one atomic change of the host's rules: all of it happens or nothing.
//
// Expressions and types are those of google/nftables. Its Conn.Flush is not used: it asks for an echo of every rule and expects
// exactly one per message, so that a change whose echo does not fit into one datagram (about 12 rules) reads as failed and leaves
// answers of its own in the socket for the next change to trip over. Here only the last message asks for an answer.
type batch struct {
	msgs []netlink.Message
	err  error
}

const tableName = "tartarus"

type attrs = []netlink.Attribute

func be32(v uint32) []byte { return binaryutil.BigEndian.PutUint32(v) }
func be16(v uint16) []byte { return binaryutil.BigEndian.PutUint16(v) }
func cstr(s string) []byte { return append([]byte(s), 0) }

func (b *batch) marshal(a attrs) []byte {
	out, err := netlink.MarshalAttributes(a)
	if err != nil && b.err == nil {
		b.err = err
	}
	return out
}

func (b *batch) nested(typ uint16, a attrs) netlink.Attribute {
	return netlink.Attribute{Type: unix.NLA_F_NESTED | typ, Data: b.marshal(a)}
}

func nfHeader(family uint8, res uint16) []byte {
	return append([]byte{family, unix.NFNETLINK_V0}, be16(res)...)
}

func (b *batch) add(typ int, flags netlink.HeaderFlags, a attrs) {
	b.msgs = append(b.msgs, netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | typ), Flags: netlink.Request | flags},
		Data:   append(nfHeader(unix.NFPROTO_INET, 0), b.marshal(a)...),
	})
}

func (b *batch) addTable() {
	b.add(unix.NFT_MSG_NEWTABLE, netlink.Create, attrs{{Type: unix.NFTA_TABLE_NAME, Data: cstr(tableName)}})
}

func (b *batch) delTable() {
	b.add(unix.NFT_MSG_DELTABLE, 0, attrs{{Type: unix.NFTA_TABLE_NAME, Data: cstr(tableName)}})
}

// hook makes a chain a base chain.
type hook struct {
	kind     string
	num      uint32
	priority int32
}

func (b *batch) addChain(name string, h *hook) {
	a := attrs{{Type: unix.NFTA_CHAIN_TABLE, Data: cstr(tableName)}, {Type: unix.NFTA_CHAIN_NAME, Data: cstr(name)}}
	if h != nil {
		a = append(a,
			b.nested(unix.NFTA_CHAIN_HOOK, attrs{
				{Type: unix.NFTA_HOOK_HOOKNUM, Data: be32(h.num)}, {Type: unix.NFTA_HOOK_PRIORITY, Data: be32(uint32(h.priority))}}),
			netlink.Attribute{Type: unix.NFTA_CHAIN_TYPE, Data: cstr(h.kind)})
	}
	b.add(unix.NFT_MSG_NEWCHAIN, netlink.Create, a)
}

func (b *batch) delChain(name string) {
	b.add(unix.NFT_MSG_DELCHAIN, 0, attrs{{Type: unix.NFTA_CHAIN_TABLE, Data: cstr(tableName)}, {Type: unix.NFTA_CHAIN_NAME, Data: cstr(name)}})
}

func (b *batch) flushChain(name string) {
	b.add(unix.NFT_MSG_DELRULE, 0, attrs{{Type: unix.NFTA_RULE_TABLE, Data: cstr(tableName)}, {Type: unix.NFTA_RULE_CHAIN, Data: cstr(name)}})
}

func (b *batch) addRule(chain, tag string, exprs ...expr.Any) {
	list := make(attrs, len(exprs))
	for i, e := range exprs {
		data, err := expr.Marshal(unix.NFPROTO_INET, e)
		if err != nil && b.err == nil {
			b.err = err
		}
		list[i] = netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_LIST_ELEM, Data: data}
	}
	a := attrs{{Type: unix.NFTA_RULE_TABLE, Data: cstr(tableName)}, {Type: unix.NFTA_RULE_CHAIN, Data: cstr(chain)}, b.nested(unix.NFTA_RULE_EXPRESSIONS, list)}
	if tag != "" {
		a = append(a, netlink.Attribute{Type: unix.NFTA_RULE_USERDATA, Data: append([]byte{0, byte(len(tag) + 1)}, cstr(tag)...)}) // a comment
	}
	b.add(unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append, a)
}

// set describes a kernel set or map.
type set struct {
	name    string
	key     nftables.SetDatatype
	flags   uint32 // unix.NFT_SET_*
	data    *nftables.SetDatatype
	counter bool   // elements count what they match
	size    uint32 // bound of a set that packets fill
}

var ifAddr = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr)
var ifAddrPort = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr, nftables.TypeInetService)
var ifPort = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeInetService)

func (b *batch) addSet(s set, id uint32) {
	a := attrs{
		{Type: unix.NFTA_SET_TABLE, Data: cstr(tableName)}, {Type: unix.NFTA_SET_NAME, Data: cstr(s.name)},
		{Type: unix.NFTA_SET_FLAGS, Data: be32(s.flags)},
		{Type: unix.NFTA_SET_KEY_TYPE, Data: be32(s.key.GetNFTMagic())}, {Type: unix.NFTA_SET_KEY_LEN, Data: be32(s.key.Bytes)},
		{Type: unix.NFTA_SET_ID, Data: be32(id)},
	}
	if s.data != nil {
		magic := s.data.GetNFTMagic()
		if s.data.Name == nftables.TypeVerdict.Name {
			magic = unix.NFT_DATA_VERDICT
		}
		a = append(a, netlink.Attribute{Type: unix.NFTA_SET_DATA_TYPE, Data: be32(magic)}, netlink.Attribute{Type: unix.NFTA_SET_DATA_LEN, Data: be32(s.data.Bytes)})
	}
	if s.size > 0 {
		a = append(a, b.nested(unix.NFTA_SET_DESC, attrs{{Type: unix.NFTA_SET_DESC_SIZE, Data: be32(s.size)}}))
	}
	if s.key.Name == nftables.TypeIFName.Name { // for people: without the byte order nft prints names as empty
		a = append(a, netlink.Attribute{Type: unix.NFTA_SET_USERDATA, Data: append([]byte{0, 4}, binaryutil.NativeEndian.PutUint32(1)...)})
	}
	if s.counter {
		const setExpr = 17 // NFTA_SET_EXPR, which x/sys lacks
		a = append(a, b.nested(setExpr, attrs{{Type: unix.NFTA_EXPR_NAME, Data: cstr("counter")}, b.nested(unix.NFTA_EXPR_DATA, nil)}))
	}
	b.add(unix.NFT_MSG_NEWSET, netlink.Create, a)
}

func (b *batch) delSet(name string) {
	b.add(unix.NFT_MSG_DELSET, 0, attrs{{Type: unix.NFTA_SET_TABLE, Data: cstr(tableName)}, {Type: unix.NFTA_SET_NAME, Data: cstr(name)}})
}

func (b *batch) flushSet(name string) {
	b.add(unix.NFT_MSG_DELSETELEM, 0, attrs{{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: cstr(tableName)}, {Type: unix.NFTA_SET_ELEM_LIST_SET, Data: cstr(name)}})
}

// element is one member of a set.
type element struct {
	key     []byte
	end     bool   // where an interval stops
	chain   string // of a verdict map: the chain to jump to
	data    []byte // of any other map
	timeout time.Duration
}

// perMessage keeps a list of elements well below the 64 KiB that an attribute can hold.
const perMessage = 400

func (b *batch) elements(typ int, flags netlink.HeaderFlags, name string, elems []element) {
	for len(elems) > 0 {
		n := min(len(elems), perMessage)
		list := make(attrs, n)
		for i, e := range elems[:n] {
			list[i] = b.nested(unix.NFTA_LIST_ELEM, b.element(e))
		}
		b.add(typ, flags, attrs{
			{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: cstr(tableName)}, {Type: unix.NFTA_SET_ELEM_LIST_SET, Data: cstr(name)},
			b.nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS, list)})
		elems = elems[n:]
	}
}

func (b *batch) element(e element) attrs {
	var a attrs
	if e.end {
		a = append(a, netlink.Attribute{Type: unix.NFTA_SET_ELEM_FLAGS, Data: be32(unix.NFT_SET_ELEM_INTERVAL_END)})
	}
	a = append(a, b.nested(unix.NFTA_SET_ELEM_KEY, attrs{{Type: unix.NFTA_DATA_VALUE, Data: e.key}}))
	if e.chain != "" {
		jump := int32(unix.NFT_JUMP)
		a = append(a, b.nested(unix.NFTA_SET_ELEM_DATA, attrs{b.nested(unix.NFTA_DATA_VERDICT, attrs{
			{Type: unix.NFTA_VERDICT_CODE, Data: be32(uint32(jump))}, {Type: unix.NFTA_VERDICT_CHAIN, Data: cstr(e.chain)}})}))
	}
	if e.data != nil {
		a = append(a, b.nested(unix.NFTA_SET_ELEM_DATA, attrs{{Type: unix.NFTA_DATA_VALUE, Data: e.data}}))
	}
	if e.timeout > 0 {
		a = append(a, netlink.Attribute{Type: unix.NFTA_SET_ELEM_TIMEOUT, Data: binaryutil.BigEndian.PutUint64(uint64(e.timeout.Milliseconds()))})
	}
	return a
}

// put adds members; those already there stay.
func (b *batch) put(name string, elems ...element) {
	b.elements(unix.NFT_MSG_NEWSETELEM, netlink.Create, name, elems)
}

// del removes members; one that is absent fails the batch.
func (b *batch) del(name string, elems ...element) {
	b.elements(unix.NFT_MSG_DELSETELEM, 0, name, elems)
}

// drop removes members whether or not they are there.
func (b *batch) drop(name string, elems ...element) {
	b.put(name, elems...)
	b.del(name, elems...)
}

// intervals are the members of an interval set that hold these prefixes, which do not overlap.
func intervals(list []netip.Prefix) []element {
	var out []element
	for _, p := range list {
		out = append(out, element{key: p.Addr().AsSlice()})
		if after := lastAddr(p).Next(); after.IsValid() {
			out = append(out, element{key: after.AsSlice(), end: true})
		}
	}
	return out
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// ifKey is a device name as the kernel compares it.
func ifKey(name string) []byte {
	k := make([]byte, unix.IFNAMSIZ)
	copy(k, name)
	return k
}

// rulesTimeout bounds one change or question.
const rulesTimeout = 10 * time.Second

// commit sends the batch and waits for the kernel's word on it.
func (b *batch) commit(conn *netlink.Conn) error {
	if b.err != nil {
		return fmt.Errorf("encode rules: %w", b.err)
	}
	if len(b.msgs) == 0 {
		return nil
	}
	edge := func(typ int) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(typ), Flags: netlink.Request}, Data: nfHeader(0, unix.NFNL_SUBSYS_NFTABLES)}
	}
	b.msgs[len(b.msgs)-1].Header.Flags |= netlink.Acknowledge
	all := make([]netlink.Message, 0, len(b.msgs)+2)
	all = append(all, edge(unix.NFNL_MSG_BATCH_BEGIN))
	all = append(all, b.msgs...)
	all = append(all, edge(unix.NFNL_MSG_BATCH_END))
	if err := conn.SetDeadline(time.Now().Add(rulesTimeout)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	sent, err := conn.SendMessages(all)
	if err != nil {
		return fmt.Errorf("send rules: %w", err)
	}
	last := sent[len(sent)-2].Header.Sequence
	for {
		answers, err := conn.Receive() // an error of any message ends the batch
		if err != nil {
			return fmt.Errorf("change rules: %w", err)
		}
		for _, m := range answers {
			if m.Header.Sequence == last {
				return nil
			}
		}
	}
}

func isMissing(err error) bool { return errors.Is(err, os.ErrNotExist) }
