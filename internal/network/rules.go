package network

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/network/webgate"
)

// Rules say what may leave a sandbox. The zero Rules let nothing out.
//
// Addresses are judged in this order: the host's own and other sandboxes', never; port 25 unless Mail; the always-denied
// ranges unless Exempt; then Allow; then Deny; then Open decides.
type Rules struct {
	Open    bool           `json:"open,omitempty"`    // what neither Allow nor Deny names may leave
	Allow   []netip.Prefix `json:"allow,omitempty"`   // IPv4
	Deny    []netip.Prefix `json:"deny,omitempty"`    // IPv4
	Domains []string       `json:"domains,omitempty"` // allowed names; "*.example.com" stands for what is below example.com

	// What only an operator's policy can give.
	Exempt []netip.Prefix `json:"exempt,omitempty"` // parts of the always-denied ranges to treat as any other address
	Mail   bool           `json:"mail,omitempty"`   // port 25 may leave
	DNS    []netip.Addr   `json:"dns,omitempty"`    // name servers to ask instead of the host's

	Proxy      *webgate.Proxy               `json:"-"` // what TCP goes through
	Transforms map[string]map[string]string `json:"-"` // headers of HTTPS requests, by name or "*." and the name above
	Owner      Owner                        `json:"-"` // whose secrets headers' placeholders name
}

// Owner is the sandbox that rules are for.
type Owner struct {
	Sandbox, Tenant string
	Tokens          map[string]tartarus.IdentityToken
}

// maxEntries bounds each list of a sandbox's rules. A kernel set of that size takes about 100 KB.
const maxEntries = 1024

// alwaysDenied are the ranges that no sandbox reaches unless a policy exempts part of them: this network, private and
// shared addresses, loopback, link-local with cloud metadata, protocol assignments, benchmarking (where slots live),
// multicast and reserved (RFC 6890). IPv6 does not leave a sandbox at all.
var alwaysDenied = prefixes("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
	"192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4")

func prefixes(s ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(s))
	for i := range s {
		out[i] = netip.MustParsePrefix(s[i])
	}
	return out
}

var everything = netip.MustParsePrefix("0.0.0.0/0")

// ParseRules turns what a caller asked for into Rules. Errors are tartarus.Invalid and name the entry.
// IPv6 entries are understood and then left out: no IPv6 leaves a sandbox, whatever its rules.
func ParseRules(n tartarus.Network) (Rules, error) {
	r := Rules{Open: n.Internet}
	if len(n.Allow) > maxEntries || len(n.Deny) > maxEntries {
		return Rules{}, tartarus.Errorf(tartarus.Invalid, "at most %d addresses or names can be allowed and as many denied", maxEntries)
	}
	for _, entry := range n.Allow {
		if p, ok := parseAddress(entry); ok {
			r.Allow = append(r.Allow, p)
			continue
		}
		name, ok := parseDomain(entry)
		if !ok {
			return Rules{}, tartarus.Errorf(tartarus.Invalid, "cannot allow %q: it is not an IP address, a CIDR, a domain or *.domain", entry)
		}
		r.Domains = append(r.Domains, name)
	}
	for _, entry := range n.Deny {
		p, ok := parseAddress(entry)
		if !ok {
			return Rules{}, tartarus.Errorf(tartarus.Invalid, "cannot deny %q: it is not an IP address or a CIDR", entry)
		}
		r.Deny = append(r.Deny, p)
	}
	if err := r.addServices(n); err != nil {
		return Rules{}, err
	}
	r.Allow, r.Deny = merge(r.Allow), merge(r.Deny)
	slices.Sort(r.Domains)
	r.Domains = slices.Compact(r.Domains)
	if slices.Contains(r.Deny, everything) {
		r.Open = false
	}
	if !r.Open {
		r.Deny = nil // allowing wins over denying, and the rest is denied anyway
	}
	if len(r.Domains) > 0 && r.Open {
		return Rules{}, tartarus.Errorf(tartarus.Invalid, "allowing the domain %q needs 0.0.0.0/0 to be denied: domains only mean something where the rest is closed", r.Domains[0])
	}
	return r, nil
}

// parseAddress reads an address or a CIDR. Host bits are cut off.
func parseAddress(s string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return netip.Prefix{}, false
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 { // ::ffff:192.0.2.1 means the IPv4 address
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked(), true
}

// parseDomain reads a host name as RFC 1123 has it, or one with "*" as its whole first label, and makes it lower case.
func parseDomain(s string) (string, bool) {
	name := strings.ToLower(strings.TrimSuffix(s, "."))
	labels := strings.Split(strings.TrimPrefix(name, "*."), ".")
	if len(name) > 253 || len(labels) < 2 {
		return "", false
	}
	for _, l := range labels {
		if len(l) == 0 || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
			return "", false
		}
		for _, c := range []byte(l) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return "", false
			}
		}
	}
	// A last label of digits alone is a mistyped address, never a domain (RFC 3696, 2).
	return name, strings.Trim(labels[len(labels)-1], "0123456789") != ""
}

// merge sorts prefixes, keeps the IPv4 ones, and leaves out what another one contains: kernel sets refuse overlaps.
func merge(in []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range in {
		if p.IsValid() && p.Addr().Is4() {
			out = append(out, p.Masked())
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	kept := out[:0]
	for _, p := range out {
		if len(kept) == 0 || !kept[len(kept)-1].Overlaps(p) {
			kept = append(kept, p)
		}
	}
	return kept
}

// normal is r as the kernel gets it: lists merged, so that equal Rules are equal and sets have no overlaps.
func (r Rules) normal() Rules {
	r.Allow, r.Deny, r.Exempt = merge(r.Allow), merge(r.Deny), merge(r.Exempt)
	r.Domains = slices.Clone(r.Domains)
	if r.Open { // any name goes
		r.Domains = nil
	}
	return r
}

// resolves reports whether a name may be asked for: any where the rest is open, else the allowed ones. A
// wildcard stands for everything below its domain, not for the domain itself.
func (r Rules) resolves(name string) bool {
	if r.Open {
		return true
	}
	for _, d := range r.Domains {
		if below, wild := strings.CutPrefix(d, "*"); name == d || wild && len(name) > len(below) && strings.HasSuffix(name, below) {
			return true
		}
	}
	return false
}

// reaches reports whether a name may stand for this address.
func (r Rules) reaches(a netip.Addr) bool {
	in := func(list []netip.Prefix) bool {
		return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	if !a.Is4() || in(alwaysDenied) && !in(r.Exempt) {
		return false
	}
	return in(r.Allow) || !in(r.Deny)
}

// custom reports whether r needs a chain of its own; without one a slot is simply open or closed.
func (r Rules) custom() bool { return len(r.Allow)+len(r.Deny)+len(r.Domains) > 0 }

const (
	protoICMP = 1
	protoTCP  = 6
	protoUDP  = 17
	smtpPort  = 25
)

// permits is the judgement that the kernel's rules make of a packet to an address that is not the host's,
// except for addresses that only a domain rule opens.
func (r Rules) permits(dst netip.Addr, proto uint8, port uint16) bool {
	in := func(list []netip.Prefix) bool {
		return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(dst) })
	}
	switch {
	case proto != protoTCP && proto != protoUDP && proto != protoICMP:
		return false
	case port == smtpPort && proto != protoICMP && !r.Mail:
		return false
	case in(alwaysDenied) && !in(r.Exempt):
		return false
	case in(r.Allow):
		return true
	case in(r.Deny):
		return false
	}
	return r.Open
}
