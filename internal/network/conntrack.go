package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables/binaryutil"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Numbers of linux/netfilter/nfnetlink_conntrack.h that x/sys lacks.
const (
	ctGet    = 1
	ctDelete = 2

	ctaTupleOrig  = 1
	ctaZone       = 18
	ctaFilter     = 25
	ctaTupleIP    = 1
	ctaTupleProto = 2
	ctaIPv4Src    = 1
	ctaIPv4Dst    = 2
	ctaProtoNum   = 1
	ctaDstPort    = 3

	ctaFilterOrigFlags = 1
	filterSrc          = 1 << 0
	filterDst          = 1 << 1
)

// flow is one tracked connection, as its first packet had it.
type flow struct {
	src, dst netip.Addr
	proto    uint8
	dstPort  uint16
	tuple    []byte // the kernel's own words for it
	zone     []byte
}

func ctRequest(typ int, flags netlink.HeaderFlags, a attrs) (netlink.Message, error) {
	data, err := netlink.MarshalAttributes(a)
	if err != nil {
		return netlink.Message{}, fmt.Errorf("encode conntrack request: %w", err)
	}
	head := []byte{unix.AF_INET, 1, 0, 0} // version 1: the family counts when many are deleted at once
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_CTNETLINK<<8 | typ), Flags: netlink.Request | flags},
		Data:   append(head, data...),
	}, nil
}

// endFilter selects the flows whose first packet came from (or, with dst, went to) an address.
func endFilter(a netip.Addr, dst bool) attrs {
	typ, flag := uint16(ctaIPv4Src), uint32(filterSrc)
	if dst {
		typ, flag = ctaIPv4Dst, filterDst
	}
	var b batch
	return attrs{
		b.nested(ctaTupleOrig, attrs{b.nested(ctaTupleIP, attrs{{Type: typ, Data: a.AsSlice()}})}),
		b.nested(ctaFilter, attrs{{Type: ctaFilterOrigFlags, Data: binaryutil.NativeEndian.PutUint32(flag)}}),
	}
}

// forget deletes every tracked connection from or to an address.
func forget(a netip.Addr) error {
	conn, err := dialConntrack()
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, dst := range []bool{false, true} {
		req, err := ctRequest(ctDelete, netlink.Acknowledge, endFilter(a, dst))
		if err != nil {
			return err
		}
		_, err = conn.Execute(req)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) { // before 6.8 the kernel takes the filter for half a tuple
			err = cut(conn, a, dst, func(flow) bool { return true })
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("forget connections of %s: %w", a, err)
		}
	}
	return nil
}

// cutDenied ends the connections that a sandbox has open and that rules (still) deny.
func cutDenied(a netip.Addr, permitted func(flow) bool) error {
	conn, err := dialConntrack()
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := cut(conn, a, false, func(f flow) bool { return !permitted(f) }); err != nil {
		return fmt.Errorf("cut connections of %s: %w", a, err)
	}
	return nil
}

func dialConntrack() (*netlink.Conn, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("open netfilter socket: %w", err)
	}
	if err := conn.SetDeadline(time.Now().Add(netlinkTimeout)); err != nil {
		conn.Close()
		return nil, fmt.Errorf("set deadline: %w", err)
	}
	return conn, nil
}

// cut lists the flows at an address and deletes those that match.
func cut(conn *netlink.Conn, a netip.Addr, dst bool, match func(flow) bool) error {
	req, err := ctRequest(ctGet, netlink.Dump, endFilter(a, dst))
	if err != nil {
		return err
	}
	answers, err := conn.Execute(req)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) { // no such filter before 5.8
		if req, err = ctRequest(ctGet, netlink.Dump, nil); err == nil {
			answers, err = conn.Execute(req)
		}
	}
	if err != nil {
		return err
	}
	for _, m := range answers {
		f, ok := parseFlow(m.Data)
		if !ok || (dst && f.dst != a) || (!dst && f.src != a) || !match(f) {
			continue
		}
		which := attrs{{Type: unix.NLA_F_NESTED | ctaTupleOrig, Data: f.tuple}}
		if f.zone != nil {
			which = append(which, netlink.Attribute{Type: ctaZone, Data: f.zone})
		}
		req, err := ctRequest(ctDelete, netlink.Acknowledge, which)
		if err != nil {
			return err
		}
		if _, err := conn.Execute(req); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

func parseFlow(data []byte) (f flow, ok bool) {
	if len(data) < 4 {
		return f, false
	}
	ad, err := netlink.NewAttributeDecoder(data[4:])
	if err != nil {
		return f, false
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		switch ad.Type() {
		case ctaTupleOrig:
			f.tuple = ad.Bytes()
			ad.Nested(func(t *netlink.AttributeDecoder) error { f.parseTuple(t); return nil })
		case ctaZone:
			f.zone = ad.Bytes()
		}
	}
	return f, ad.Err() == nil && f.src.IsValid() && f.dst.IsValid()
}

func (f *flow) parseTuple(t *netlink.AttributeDecoder) {
	for t.Next() {
		switch t.Type() {
		case ctaTupleIP:
			t.Nested(func(ip *netlink.AttributeDecoder) error {
				for ip.Next() {
					a, _ := netip.AddrFromSlice(ip.Bytes())
					switch ip.Type() {
					case ctaIPv4Src:
						f.src = a
					case ctaIPv4Dst:
						f.dst = a
					}
				}
				return nil
			})
		case ctaTupleProto:
			t.Nested(func(p *netlink.AttributeDecoder) error {
				for p.Next() {
					switch p.Type() {
					case ctaProtoNum:
						f.proto = p.Uint8()
					case ctaDstPort:
						f.dstPort = p.Uint16()
					}
				}
				return nil
			})
		}
	}
}
