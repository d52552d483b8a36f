package resolver

import (
	"context"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	minTTL  = 30 * time.Second // shorter ones would be asked for again with every connection
	maxTTL  = time.Hour
	maxUDP  = 1232 // bytes of an answer by UDP that no path cuts up (DNS flag day 2020)
	maxAddr = 64   // of one answer; more are left out
)

// special are names that mean something on the host's own network or machine, or nothing at all (RFC 6761, 6762, 7686, 8375, 9476).
var special = []string{"localhost", "local", "localdomain", "internal", "intranet", "lan", "home", "corp", "private", "home.arpa", "onion", "invalid", "test", "alt"}

// handle answers one message; nil where no answer is due.
func (s *Server) handle(ctx context.Context, p Policy, question []byte, udp bool) []byte {
	var q dns.Msg
	if q.Unpack(question) != nil || q.Response {
		return nil
	}
	r := s.answer(ctx, p, &q)
	size := dns.MaxMsgSize
	if udp {
		size = dns.MinMsgSize
		if o := q.IsEdns0(); o != nil {
			size = min(max(int(o.UDPSize()), dns.MinMsgSize), maxUDP)
		}
	}
	r.Truncate(size)
	out, err := r.Pack()
	if err != nil {
		s.log.Warn("pack answer", "slot", p.Name(), "error", err)
		return nil
	}
	return out
}

// answer decides what the asker learns.
func (s *Server) answer(ctx context.Context, p Policy, q *dns.Msg) *dns.Msg {
	if q.Opcode != dns.OpcodeQuery {
		return refuse(q, dns.RcodeNotImplemented, 0)
	}
	if len(q.Question) != 1 {
		return refuse(q, dns.RcodeFormatError, 0)
	}
	ask := q.Question[0]
	name := strings.ToLower(strings.TrimSuffix(ask.Name, "."))
	switch {
	case ask.Qclass != dns.ClassINET || transfers(ask.Qtype) || !p.Resolves(name):
		s.log.Debug("name refused", "slot", p.Name(), "name", name, "type", dns.TypeToString[ask.Qtype])
		return refuse(q, dns.RcodeRefused, dns.ExtendedErrorCodeProhibited)
	case isSpecial(name) || reverseOf(name).IsValid() && !p.Reaches(reverseOf(name)):
		return refuse(q, dns.RcodeNameError, dns.ExtendedErrorCodeBlocked)
	case ask.Qtype == dns.TypeAAAA || ask.Qtype == dns.TypeHTTPS || ask.Qtype == dns.TypeSVCB:
		return reply(q) // no IPv6 leaves a sandbox; service records give such addresses, and keys that hide names from checks
	}
	up, err := s.ask(ctx, p, ask)
	if err != nil {
		s.log.Debug("name servers failed", "slot", p.Name(), "name", name, "error", err)
		return refuse(q, dns.RcodeServerFailure, dns.ExtendedErrorCodeNoReachableAuthority)
	}
	r, addrs, ttl, hidden := s.pick(p, q, up)
	if hidden > 0 && len(addrs) == 0 {
		s.log.Debug("answer refused: its addresses are denied", "slot", p.Name(), "name", name)
		return refuse(q, dns.RcodeRefused, dns.ExtendedErrorCodeFiltered)
	}
	if len(addrs) > 0 {
		if err := p.Pin(ctx, name, addrs, ttl); err != nil {
			s.log.Warn("pin answer", "slot", p.Name(), "name", name, "error", err)
			return refuse(q, dns.RcodeServerFailure, dns.ExtendedErrorCodeOther)
		}
	}
	return r
}

// pick copies from the name server's answer what belongs to the question: the chain of aliases from the name
// asked for, and the records at its end. Denied addresses are counted and left out.
func (s *Server) pick(p Policy, q, up *dns.Msg) (r *dns.Msg, addrs []netip.Addr, ttl time.Duration, hidden int) {
	r = reply(q)
	r.Rcode = up.Rcode
	ask := q.Question[0]
	ttl = maxTTL
	chain := map[string]bool{strings.ToLower(ask.Name): true}
	for grown := true; grown; { // servers may send aliases in any order
		grown = false
		for _, rr := range up.Answer {
			if c, ok := rr.(*dns.CNAME); ok && chain[strings.ToLower(c.Hdr.Name)] && !chain[strings.ToLower(c.Target)] {
				chain[strings.ToLower(c.Target)] = true
				grown = true
			}
		}
	}
	for _, rr := range up.Answer {
		h := rr.Header()
		if h.Class != dns.ClassINET || !chain[strings.ToLower(h.Name)] || (h.Rrtype != ask.Qtype && h.Rrtype != dns.TypeCNAME) {
			continue
		}
		h.Ttl = clamp(h.Ttl)
		if a, ok := rr.(*dns.A); ok {
			addr, valid := netip.AddrFromSlice(a.A.To4())
			if !valid || !p.Reaches(addr) || len(addrs) == maxAddr {
				hidden++
				continue
			}
			addrs = append(addrs, addr)
		}
		ttl = min(ttl, time.Duration(h.Ttl)*time.Second)
		r.Answer = append(r.Answer, rr)
	}
	for _, rr := range up.Ns {
		if rr.Header().Rrtype == dns.TypeSOA { // how long a "no" is valid
			r.Ns = append(r.Ns, rr)
		}
	}
	return r, addrs, ttl, hidden
}

func clamp(ttl uint32) uint32 {
	return uint32(min(max(time.Duration(ttl)*time.Second, minTTL), maxTTL) / time.Second)
}

// transfers are questions for more than one kind of record.
func transfers(t uint16) bool {
	return t == dns.TypeANY || t == dns.TypeAXFR || t == dns.TypeIXFR || t == dns.TypeMAILA || t == dns.TypeMAILB
}

func isSpecial(name string) bool {
	for _, s := range special {
		if name == s || strings.HasSuffix(name, "."+s) {
			return true
		}
	}
	return false
}

// reverseOf reads the address out of a reverse name; of one for a whole network, its first. Of other names, none.
func reverseOf(name string) netip.Addr {
	rest, ok := strings.CutSuffix(name, ".in-addr.arpa")
	if !ok {
		if strings.HasSuffix(name, "ip6.arpa") {
			return netip.IPv6Loopback() // nobody reaches it, as nobody reaches any IPv6 address
		}
		return netip.Addr{}
	}
	labels := strings.Split(rest, ".")
	if len(labels) > 4 {
		return netip.IPv4Unspecified()
	}
	octets := []string{"0", "0", "0", "0"}
	for i := range labels {
		octets[i] = labels[len(labels)-1-i]
	}
	a, err := netip.ParseAddr(strings.Join(octets, "."))
	if err != nil {
		return netip.IPv4Unspecified()
	}
	return a
}

func reply(q *dns.Msg) *dns.Msg {
	r := new(dns.Msg)
	r.SetReply(q)
	r.RecursionAvailable = true
	if q.IsEdns0() != nil {
		r.SetEdns0(maxUDP, false)
	}
	return r
}

// refuse is an answer without records. An asker that understands it is told why (RFC 8914).
func refuse(q *dns.Msg, rcode int, why uint16) *dns.Msg {
	r := reply(q)
	r.Rcode = rcode
	if o := r.IsEdns0(); o != nil && rcode != dns.RcodeNotImplemented && rcode != dns.RcodeFormatError {
		o.Option = append(o.Option, &dns.EDNS0_EDE{InfoCode: why})
	}
	return r
}
