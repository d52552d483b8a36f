package olympus

import (
	"net/url"
	"testing"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
)

// Whatever arrives as a metadata filter is either refused as invalid or within the bounds of metadata; and what an SDK encodes comes out as it was.
func FuzzDecodeMetadata(f *testing.F) {
	for _, seed := range []string{"", "k%2520y=v%25261", "a=b", "a", "=v", "a=%zz", "%25=%25", "a=1&a=2", ";", "a=%00", "a=+", "%C3%28=x"} {
		f.Add(seed, "k y", "v&1")
	}
	f.Fuzz(func(t *testing.T, filter, key, value string) {
		m, err := decodeMetadata(filter)
		if err != nil {
			if !tartarus.Is(err, tartarus.Invalid) {
				t.Fatalf("%q: %v", filter, err)
			}
		} else if err := checkMetadata(m); err != nil {
			t.Fatalf("%q: decoded to what may not be: %v", filter, err)
		}
		if checkMetadata(map[string]string{key: value}) != nil {
			return
		}
		sent := url.Values{url.PathEscape(key): {url.PathEscape(value)}}.Encode()
		if got, err := decodeMetadata(sent); err != nil || len(got) != 1 || got[key] != value {
			t.Fatalf("{%q: %q} was sent as %q and came as %v, %v", key, value, sent, got, err)
		}
	})
}

// A page token is refused or leads to a place that gives the same token again.
func FuzzDecodeCursor(f *testing.F) {
	f.Add("MjAyNi0wMS0wMVQwMDowMDowMFpfX2kx")
	f.Add("")
	f.Add("!!!")
	f.Fuzz(func(t *testing.T, token string) {
		c, err := decodeCursor(token)
		if err != nil {
			return
		}
		again, err := decodeCursor(encodeCursor(c))
		if err != nil || again.ID != c.ID || !again.StartedAt.Equal(c.StartedAt) || !tartarus.ValidID(c.ID) || c == (hades.Cursor{}) {
			t.Fatalf("%q: %+v became %+v, %v", token, c, again, err)
		}
	})
}

// A rule is refused or in a form that reads as itself.
func FuzzEgressRules(f *testing.F) {
	for _, seed := range []string{"1.2.3.4", "10.0.0.1/8", "::1", "::ffff:1.2.3.4", "fe80::1%a", "a.com", "*.a.com", "1.2.3", "xn--bcher-kva.de", "_a.b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, rule string) {
		if p, ok := parseRange(rule); ok {
			if again, ok := parseRange(p); !ok || again != p {
				t.Fatalf("%q became %q, which became %q", rule, p, again)
			}
			if validDomainRule(p) {
				t.Fatalf("%q is a range and a name", rule)
			}
		}
	})
}
