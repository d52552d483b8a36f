package edge

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/tartarus-sandbox/tartarus"
)

// Headers by which a request names its sandbox, as net/http writes them.
const (
	headerSandbox = "E2b-Sandbox-Id"
	headerPort    = "E2b-Sandbox-Port"
	headerTraffic = "E2b-Traffic-Access-Token"
	headerKey     = "X-Api-Key"
)

// target is a port of a sandbox. The zero target is the API.
type target struct {
	id   string
	port int
}

// target finds out for whom a request is. A host name of a sandbox counts more than headers, so that what a page sends to its own
// origin stays there.
func (e *Edge) target(r *http.Request) (target, error) {
	if e.domain != "" {
		if t, ok := parseHost(r.Host, e.domain); ok {
			return t, nil
		}
	}
	if ids := r.Header[headerSandbox]; len(ids) > 0 {
		return parseHeaders(ids[0], r.Header[headerPort])
	}
	if r.URL.Path == "/files" {
		return e.signed.target(r)
	}
	return target{}, nil
}

// bareDomain checks a domain and takes off its port.
func bareDomain(domain string) (string, error) {
	d := strings.ToLower(domain)
	if host, port, ok := strings.Cut(d, ":"); ok {
		if _, ok := parsePort(port); !ok {
			return "", tartarus.Errorf(tartarus.Invalid, "domain %q has a port that is none", domain)
		}
		d = host
	}
	if d == "" {
		return "", nil
	}
	if len(d) > 200 { // a label of 5 + 1 + 32 characters and a dot must fit before it
		return "", tartarus.Errorf(tartarus.Invalid, "domain %q is too long", domain)
	}
	for _, label := range strings.Split(d, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return "", tartarus.Errorf(tartarus.Invalid, "domain %q is not a host name", domain)
		}
	}
	return d, nil
}

// parseHost reads {port}-{id}.{domain}[:n], or {port}-{id}-{client}.{domain} as older clients write it. domain is lower-case.
func parseHost(host, domain string) (target, bool) {
	// Without the port that the client connected to; what is left of an IPv6 address is no name under the domain anyway.
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		host = host[:i]
	}
	host = strings.TrimSuffix(host, ".")
	cut := len(host) - len(domain) - 1
	if cut < 3 || host[cut] != '.' || !strings.EqualFold(host[cut+1:], domain) {
		return target{}, false
	}
	number, id, ok := strings.Cut(host[:cut], "-")
	if !ok {
		return target{}, false
	}
	port, ok := parsePort(number)
	if !ok {
		return target{}, false
	}
	id, client, _ := strings.Cut(strings.ToLower(id), "-")
	if !tartarus.ValidID(id) || client != "" && !tartarus.ValidID(client) {
		return target{}, false
	}
	return target{id, port}, true
}

// parseHeaders reads the routing headers. The port is the agent's where none is named.
func parseHeaders(id string, ports []string) (target, error) {
	id, _, _ = strings.Cut(id, "-")
	t := target{id: id, port: tartarus.AgentPort}
	if !tartarus.ValidID(id) {
		// What cannot exist is not found, like everything else that does not.
		return t, tartarus.Errorf(tartarus.GuestGone, "%.40q cannot be a sandbox", id)
	}
	if len(ports) > 0 {
		var ok bool
		if t.port, ok = parsePort(ports[0]); !ok {
			return t, tartarus.Errorf(tartarus.Invalid, "%s %.20q is not a port", headerPort, ports[0])
		}
	}
	return t, nil
}

// parsePort reads a port number without sign, leading zero or anything else that another reader might take differently.
func parsePort(s string) (int, bool) {
	if len(s) == 0 || len(s) > 5 || s[0] == '0' {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 16)
	return int(n), err == nil
}
