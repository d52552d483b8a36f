package olympus

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
)

// everything is all of IPv4; who denies it denies IPv6 too.
const (
	everything  = "0.0.0.0/0"
	everything6 = "::/0"
)

// maxRules bounds each list of egress rules; maxHTTPSPorts the ports that speak TLS.
const (
	maxRules      = 512
	maxHTTPSPorts = 64
	maxMaskHost   = 255
)

// newNetwork reads the network part of a create. It is strict: a restriction that is not understood must not be passed over.
func newNetwork(raw json.RawMessage, internet *bool) (tartarus.Network, error) {
	in := api.NetworkConfig{}
	if isSet(raw) {
		var err error
		if in, err = decodeNetwork(raw); err != nil {
			return tartarus.Network{}, tartarus.Errorf(tartarus.KindOf(err), "network: %w", err)
		}
	}
	if in.AllowInternetAccess != nil {
		return tartarus.Network{}, tartarus.Errorf(tartarus.Invalid, "network.allow_internet_access belongs outside of network in a create")
	}
	n, err := egress(in, internet)
	if err != nil {
		return n, err
	}
	n.PublicTraffic = !isFalse(in.AllowPublicTraffic)
	n.MaskRequestHost, n.HTTPSPorts = in.MaskRequestHost, in.HTTPSPorts
	return n, checkIngress(n)
}

// updateNetwork reads an update: it replaces all egress rules and leaves ingress as it was.
func updateNetwork(raw []byte, old tartarus.Network) (tartarus.Network, error) {
	in, err := decodeNetwork(raw)
	if err != nil {
		return old, err
	}
	if in.AllowPublicTraffic != nil || in.MaskRequestHost != "" || in.HTTPSPorts != nil {
		return old, tartarus.Errorf(tartarus.Invalid, "allowPublicTraffic, maskRequestHost and httpsPorts are fixed when a sandbox is created")
	}
	n, err := egress(in, in.AllowInternetAccess)
	n.PublicTraffic, n.MaskRequestHost, n.HTTPSPorts = old.PublicTraffic, old.MaskRequestHost, old.HTTPSPorts
	return n, err
}

func decodeNetwork(raw []byte) (in api.NetworkConfig, err error) {
	if err := decode(raw, &in, true); err != nil {
		return in, err
	}
	return in, nil
}

// egress checks and normalises the rules of what may leave.
func egress(in api.NetworkConfig, internet *bool) (tartarus.Network, error) {
	n := tartarus.Network{Internet: !isFalse(internet)}
	if len(in.AllowOut) > maxRules || len(in.DenyOut) > maxRules {
		return n, tartarus.Errorf(tartarus.Invalid, "allowOut and denyOut may have %d entries each", maxRules)
	}
	for _, s := range in.DenyOut {
		p, ok := parseRange(s)
		if !ok {
			return n, tartarus.Errorf(tartarus.Invalid, "denyOut %.80q must be an IP address or CIDR", s)
		}
		n.Deny = append(n.Deny, p)
	}
	domains := false
	for _, s := range in.AllowOut {
		p, ok := parseRange(s)
		if !ok {
			p, domains = strings.ToLower(s), true
			if !validDomainRule(p) {
				return n, tartarus.Errorf(tartarus.Invalid, "allowOut %.80q must be an IP address, a CIDR, a domain or *.domain", s)
			}
		}
		n.Allow = append(n.Allow, p)
	}
	if domains && n.Internet && !slices.Contains(n.Deny, everything) {
		return n, tartarus.Errorf(tartarus.Invalid, "a domain in allowOut needs denyOut to have %s: allowing names means nothing where all is allowed", everything)
	}
	if !n.Internet && len(n.Allow) > 0 {
		// No internet, but for what is allowed, is the same as everything denied but for what is allowed.
		n.Internet, n.Deny = true, append(n.Deny, everything, everything6)
	}
	if slices.Contains(n.Deny, everything) && !slices.Contains(n.Deny, everything6) {
		n.Deny = append(n.Deny, everything6)
	}
	slices.Sort(n.Deny)
	n.Deny = slices.Compact(n.Deny)
	return n, addServices(&n, in)
}

// parseRange reads an address or CIDR and writes it in its one canonical form.
func parseRange(s string) (string, bool) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return a.Unmap().String(), true
	}
	if p, err := netip.ParsePrefix(s); err == nil && !p.Addr().Is4In6() {
		return p.Masked().String(), true
	}
	return "", false
}

// validDomainRule accepts a host name of two labels or more, or one with a leading *. label. What looks like an address but is none is no
// name either.
func validDomainRule(s string) bool {
	s, _ = strings.CutPrefix(s, "*.")
	if len(s) == 0 || len(s) > 253 {
		return false
	}
	labels := strings.Split(s, ".")
	for _, l := range labels {
		if !validLabel(l) {
			return false
		}
	}
	last := labels[len(labels)-1]
	return strings.ContainsFunc(last, func(c rune) bool { return c >= 'a' && c <= 'z' })
}

func validLabel(l string) bool {
	if len(l) == 0 || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
		return false
	}
	for i := range len(l) {
		if c := l[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// checkIngress refuses what could not be sent to a guest.
func checkIngress(n tartarus.Network) error {
	if len(n.HTTPSPorts) > maxHTTPSPorts {
		return tartarus.Errorf(tartarus.Invalid, "httpsPorts may have %d entries", maxHTTPSPorts)
	}
	for _, p := range n.HTTPSPorts {
		if p < 1 || p > 65535 || p == tartarus.AgentPort {
			return tartarus.Errorf(tartarus.Invalid, "httpsPorts: %d is not a port that could speak TLS", p)
		}
	}
	host := strings.ReplaceAll(n.MaskRequestHost, "${PORT}", "1")
	if len(host) > maxMaskHost || strings.ContainsFunc(host, notInHost) {
		return tartarus.Errorf(tartarus.Invalid, "maskRequestHost must be a host name, with ${PORT} where the port belongs")
	}
	return nil
}

func notInHost(c rune) bool {
	return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("-_.:[]", c)
}
