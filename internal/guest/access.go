package guest

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/settings"
)

// access is what a route asks of its caller.
type access int

const (
	open      access = iota // nothing
	token                   // the access token, where one is set
	readSign                // the access token or a signature for reading
	writeSign               // the access token or a signature for writing
	host                    // to be the host
)

// allow checks the rule of a route.
func (a *Agent) allow(rule access, r *http.Request) error {
	set := a.settings.Load()
	switch rule {
	case open:
		return nil
	case host:
		peer, err := netip.ParseAddrPort(r.RemoteAddr)
		if err == nil && a.config.FromHost(net.TCPAddrFromAddrPort(peer)) {
			return nil
		}
		// From outside the route does not exist.
		return tartarus.Errorf(tartarus.NotFound, "no such route: %s %s", r.Method, r.URL.Path)
	}
	given := r.Header.Get("X-Access-Token")
	if set.Token == "" || given != "" && set.HasToken(given) {
		return nil
	}
	if rule == token {
		return tartarus.Errorf(tartarus.Unauthenticated, "unauthorized access, please provide a valid access token or method signing if supported")
	}
	if given != "" {
		return tartarus.Errorf(tartarus.Unauthenticated, "access token present in header but does not match")
	}
	operation := "read"
	if rule == writeSign {
		operation = "write"
	}
	return checkSignature(set, r.URL.Query(), operation, time.Now())
}

// checkSignature checks that the query was signed with the token for this operation on this path and user.
func checkSignature(set *settings.Settings, query url.Values, operation string, now time.Time) error {
	if !query.Has("signature") {
		return tartarus.Errorf(tartarus.Unauthenticated, "missing signature query parameter")
	}
	var expires int64
	expiration := query.Get("signature_expiration")
	if query.Has("signature_expiration") {
		var err error
		if expires, err = strconv.ParseInt(expiration, 10, 64); err != nil || strconv.FormatInt(expires, 10) != expiration {
			return tartarus.Errorf(tartarus.Unauthenticated, "invalid signature: signature_expiration is not a number of seconds")
		}
	}
	want := signature(query.Get("path"), operation, query.Get("username"), set.Token, expiration)
	if subtle.ConstantTimeCompare([]byte(want), []byte(query.Get("signature"))) != 1 {
		return tartarus.Errorf(tartarus.Unauthenticated, "invalid signature")
	}
	if expiration != "" && expires < now.Unix() {
		return tartarus.Errorf(tartarus.Unauthenticated, "signature is already expired")
	}
	return nil
}

// signature is what SDKs put into a signed address. An empty expiration means that it never ends.
func signature(path, operation, user, token, expiration string) string {
	parts := []string{path, operation, user, token}
	if expiration != "" {
		parts = append(parts, expiration)
	}
	sum := sha256.Sum256([]byte(strings.Join(parts, ":")))
	return "v1_" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// FromHost reports whether peer is outside of this guest: neither loopback nor any address that a network device
// of the guest has now. Programs in the guest can connect from those only.
func FromHost(peer net.Addr) bool {
	tcp, ok := peer.(*net.TCPAddr)
	if !ok || tcp.IP.IsLoopback() || tcp.IP.IsUnspecified() {
		return false
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, address := range own {
		if network, ok := address.(*net.IPNet); ok && network.IP.Equal(tcp.IP) {
			return false
		}
	}
	return true
}
