package network

import (
	"context"
	"crypto/x509"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/network/webgate"
)

// Bounds of what one sandbox's rules may ask of the services: those of the wire protocol.
const (
	maxDNS        = 10
	maxTransforms = 10
	maxHeaders    = 20
	maxCredential = 255 // RFC 1929
	maxBundle     = 64 << 10
	maxValue      = 16 << 10 // of a header
)

// addServices adds what our own services do for the sandbox: asking other name servers, going through a proxy, putting headers in.
func (r *Rules) addServices(n tartarus.Network) error {
	if len(n.DNS) > maxDNS {
		return tartarus.Errorf(tartarus.Invalid, "dnsServers may have %d entries, not %d", maxDNS, len(n.DNS))
	}
	for _, s := range n.DNS {
		a, err := netip.ParseAddr(s)
		if err != nil || !a.Is4() {
			return tartarus.Errorf(tartarus.Invalid, "dnsServers %.80q must be an IPv4 address", s)
		}
		if slices.ContainsFunc(alwaysDenied, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return tartarus.Errorf(tartarus.Invalid, "dnsServers %s is in a range that sandboxes never reach", a)
		}
		r.DNS = append(r.DNS, a)
		if r.Open || len(r.Allow)+len(r.Domains) > 0 {
			r.Allow = append(r.Allow, netip.PrefixFrom(a, 32))
		}
	}
	proxy, err := parseProxy(n.Proxy)
	if err != nil {
		return err
	}
	r.Proxy = proxy
	if len(n.Transforms) > maxTransforms {
		return tartarus.Errorf(tartarus.Invalid, "rules may name %d domains, not %d", maxTransforms, len(n.Transforms))
	}
	for host, headers := range n.Transforms {
		if err := checkTransform(host, headers); err != nil {
			return err
		}
	}
	r.Transforms = n.Transforms
	return nil
}

func parseProxy(p *tartarus.EgressProxy) (*webgate.Proxy, error) {
	if p == nil {
		return nil, nil
	}
	host, port, err := net.SplitHostPort(p.Address)
	number, perr := strconv.ParseUint(port, 10, 16)
	_, named := parseDomain(host)
	a, aerr := netip.ParseAddr(host)
	switch {
	case err != nil || perr != nil || number == 0 || !named && aerr != nil || strings.HasPrefix(host, "*"):
		return nil, tartarus.Errorf(tartarus.Invalid, "egressProxy.address %.80q must be host:port", p.Address)
	case aerr == nil && slices.ContainsFunc(alwaysDenied, func(p netip.Prefix) bool { return p.Contains(a.Unmap()) }):
		return nil, tartarus.Errorf(tartarus.Invalid, "egressProxy.address %s is in a range that sandboxes never reach", a)
	case len(p.Username) > maxCredential || len(p.Password) > maxCredential:
		return nil, tartarus.Errorf(tartarus.Invalid, "egressProxy: username and password have at most %d bytes", maxCredential)
	case p.Password != "" && p.Username == "":
		return nil, tartarus.Errorf(tartarus.Invalid, "egressProxy: a password needs a username")
	case !p.TLS && (p.ServerName != "" || p.CACert != ""):
		return nil, tartarus.Errorf(tartarus.Invalid, "egressProxy.tls: serverName and caCert need enabled")
	case len(p.CACert) > maxBundle:
		return nil, tartarus.Errorf(tartarus.Invalid, "egressProxy.tls.caCert may have %d bytes", maxBundle)
	}
	out := &webgate.Proxy{Address: p.Address, Username: p.Username, Password: p.Password, TLS: p.TLS, ServerName: p.ServerName}
	if p.ServerName != "" {
		if _, ok := parseDomain(p.ServerName); !ok {
			return nil, tartarus.Errorf(tartarus.Invalid, "egressProxy.tls.serverName %.80q is not a name", p.ServerName)
		}
	}
	if p.CACert != "" {
		out.Roots = x509.NewCertPool()
		if !out.Roots.AppendCertsFromPEM([]byte(p.CACert)) {
			return nil, tartarus.Errorf(tartarus.Invalid, "egressProxy.tls.caCert holds no certificate in PEM")
		}
	}
	return out, nil
}

// kept are headers that are the connection's own: putting them in would change where or how a request goes.
var kept = []string{"host", "connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer", "keep-alive", "proxy-connection", "expect"}

func checkTransform(host string, headers map[string]string) error {
	name := strings.TrimPrefix(host, "*.")
	if name == host || strings.Contains(name, ".") {
		if parsed, ok := parseDomain(host); !ok || parsed != host {
			return tartarus.Errorf(tartarus.Invalid, "rules: %.80q must be a domain or *.domain, in lower case", host)
		}
	} else if _, ok := parseDomain("x." + name); !ok { // *.com is a wildcard, if a broad one
		return tartarus.Errorf(tartarus.Invalid, "rules: %.80q must be a domain or *.domain, in lower case", host)
	}
	if len(headers) > maxHeaders {
		return tartarus.Errorf(tartarus.Invalid, "rules: %s may have %d headers, not %d", host, maxHeaders, len(headers))
	}
	for header, value := range headers {
		if !validHeader(header) || slices.Contains(kept, strings.ToLower(header)) {
			return tartarus.Errorf(tartarus.Invalid, "rules: %s: %.80q cannot be put into a request", host, header)
		}
		if !validValue(value) {
			return tartarus.Errorf(tartarus.Invalid, "rules: %s: the value of %s has characters that no header has, or more than %d", host, header, maxValue)
		}
	}
	return nil
}

// validHeader accepts a token (RFC 9110, 5.6.2).
func validHeader(s string) bool {
	if s == "" || len(s) > 256 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return false
		}
	}
	return true
}

func validValue(s string) bool {
	return len(s) <= maxValue && !strings.ContainsFunc(s, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f })
}

// gated reports whether web traffic goes through our gate.
func (r Rules) gated() bool { return len(r.Domains)+len(r.Transforms) > 0 || r.Proxy != nil }

// transform finds the headers for a server: those of its own name, else of the longest wildcard above it.
func (r Rules) transform(name string) (headers map[string]string, ok bool) {
	if headers, ok = r.Transforms[name]; ok {
		return headers, true
	}
	for above := name; ; {
		_, rest, found := strings.Cut(above, ".")
		if !found {
			return nil, false
		}
		if headers, ok = r.Transforms["*."+rest]; ok {
			return headers, true
		}
		above = rest
	}
}

func (p policy) Proxy() *webgate.Proxy { return p.rules().Proxy }

func (p policy) Transforms(name string) bool { _, ok := p.rules().transform(name); return ok }

// Headers fills the placeholders of the headers for a server.
func (p policy) Headers(ctx context.Context, name string) (map[string]string, error) {
	r := p.rules()
	headers, _ := r.transform(name)
	out := make(map[string]string, len(headers))
	for header, value := range headers {
		filled, err := p.pool.fill(ctx, r.Owner, value)
		if err != nil {
			return nil, err
		}
		if !validValue(filled) {
			return nil, tartarus.Errorf(tartarus.Invalid, "the value for %s has characters that no header has", header)
		}
		out[header] = filled
	}
	return out, nil
}

func (p *Pool) fill(ctx context.Context, o Owner, value string) (string, error) {
	if !strings.Contains(value, "${e2b.") {
		return value, nil
	}
	if p.cfg.Fill == nil {
		return "", tartarus.Errorf(tartarus.Unsupported, "this node has no secrets for the headers of requests")
	}
	return p.cfg.Fill(ctx, o, value)
}

// mayProxy refuses proxies at addresses that sandboxes must not reach: a proxy is dialled by the host, past the rules.
func (p *Pool) mayProxy(a netip.Addr) error {
	denied := func(d netip.Prefix) bool { return d.Contains(a) }
	if !a.Is4() && !a.IsGlobalUnicast() || a.IsPrivate() || slices.ContainsFunc(alwaysDenied, denied) || p.cfg.Base.Contains(a) {
		return tartarus.Errorf(tartarus.Denied, "%s is in a range that sandboxes never reach", a)
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	for _, o := range own {
		if n, ok := o.(*net.IPNet); ok && n.IP.Equal(net.IP(a.AsSlice())) {
			return tartarus.Errorf(tartarus.Denied, "%s is the host's own", a)
		}
	}
	return nil
}

// CACertificate is what guests have to trust where headers are put into their requests, in PEM.
func (p *Pool) CACertificate() []byte { return p.authority.Certificate() }
