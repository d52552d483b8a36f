package network

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/tartarus-sandbox/tartarus"
	"pgregory.net/rapid"
)

func TestParseRules(t *testing.T) {
	all := []string{"0.0.0.0/0"}
	rows := []struct {
		name string
		in   tartarus.Network
		want Rules
		bad  string // the entry that the error has to name
	}{
		{name: "default", in: tartarus.Network{Internet: true}, want: Rules{Open: true}},
		{name: "off", in: tartarus.Network{}, want: Rules{}},
		{name: "address and CIDR", in: tartarus.Network{Allow: []string{"1.1.1.1", "9.9.9.77/24"}}, want: Rules{Allow: prefixes("1.1.1.1/32", "9.9.9.0/24")}},
		{name: "deny", in: tartarus.Network{Internet: true, Deny: []string{"9.9.9.9"}}, want: Rules{Open: true, Deny: prefixes("9.9.9.9/32")}},
		{name: "deny everything", in: tartarus.Network{Internet: true, Deny: all}, want: Rules{}},
		{name: "deny everything but", in: tartarus.Network{Internet: true, Deny: all, Allow: []string{"1.1.1.1"}}, want: Rules{Allow: prefixes("1.1.1.1/32")}},
		{name: "off but", in: tartarus.Network{Allow: []string{"1.1.1.1"}, Deny: []string{"8.8.8.8"}}, want: Rules{Allow: prefixes("1.1.1.1/32")}},
		{name: "overlaps are merged", in: tartarus.Network{Allow: []string{"1.1.1.1", "1.1.0.0/16", "1.1.1.1", "1.0.0.0/8"}}, want: Rules{Allow: prefixes("1.0.0.0/8")}},
		{name: "domains", in: tartarus.Network{Internet: true, Deny: all, Allow: []string{"*.Example.COM", "pkg.example.org.", "pkg.example.org"}}, want: Rules{Domains: []string{"*.example.com", "pkg.example.org"}}},
		{name: "domains without internet", in: tartarus.Network{Allow: []string{"pkg.example.org"}}, want: Rules{Domains: []string{"pkg.example.org"}}},
		{name: "mapped address", in: tartarus.Network{Allow: []string{"::ffff:1.1.1.1", "::ffff:2.2.0.0/112"}}, want: Rules{Allow: prefixes("1.1.1.1/32", "2.2.0.0/16")}},
		{name: "IPv6 means nothing", in: tartarus.Network{Internet: true, Allow: []string{"2606:4700::/32"}, Deny: []string{"::/0"}}, want: Rules{Open: true}},

		{name: "domain with the internet open", in: tartarus.Network{Internet: true, Allow: []string{"pkg.example.org"}}, bad: "pkg.example.org"},
		{name: "domain denied", in: tartarus.Network{Internet: true, Deny: []string{"evil.example"}}, bad: "evil.example"},
		{name: "wildcard in the middle", in: tartarus.Network{Allow: []string{"a.*.com"}}, bad: "a.*.com"},
		{name: "bare wildcard", in: tartarus.Network{Allow: []string{"*"}}, bad: "*"},
		{name: "wildcard of a top level", in: tartarus.Network{Allow: []string{"*.com"}}, bad: "*.com"},
		{name: "single label", in: tartarus.Network{Allow: []string{"localhost"}}, bad: "localhost"},
		{name: "empty", in: tartarus.Network{Allow: []string{""}}, bad: `""`},
		{name: "mistyped address", in: tartarus.Network{Allow: []string{"1.2.3.400"}}, bad: "1.2.3.400"},
		{name: "long prefix", in: tartarus.Network{Allow: []string{"1.2.3.4/33"}}, bad: "1.2.3.4/33"},
		{name: "zone", in: tartarus.Network{Allow: []string{"fe80::1%eth0"}}, bad: "fe80::1%eth0"},
		{name: "URL", in: tartarus.Network{Allow: []string{"https://pkg.example.org"}}, bad: "https://pkg.example.org"},
		{name: "port", in: tartarus.Network{Allow: []string{"pkg.example.org:443"}}, bad: "pkg.example.org:443"},
		{name: "long label", in: tartarus.Network{Allow: []string{strings.Repeat("a", 64) + ".com"}}, bad: strings.Repeat("a", 64)},
		{name: "too many", in: tartarus.Network{Allow: make([]string, maxEntries+1)}, bad: "1024"},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			got, err := ParseRules(r.in)
			if r.bad != "" {
				if !tartarus.Is(err, tartarus.Invalid) || !strings.Contains(err.Error(), r.bad) {
					t.Errorf("error %v, want one that names %s", err, r.bad)
				}
				return
			}
			if err != nil || !reflect.DeepEqual(got, r.want) {
				t.Errorf("got %+v, %v; want %+v", got, err, r.want)
			}
		})
	}
}

// TestMerge compares merged prefixes with the ones they were made from, address by address.
func TestMerge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		gen := rapid.Custom(func(t *rapid.T) netip.Prefix {
			b := rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "address")
			b[0] &= 3 // few first bytes, so that overlaps are common
			return netip.PrefixFrom(netip.AddrFrom4([4]byte(b)), rapid.IntRange(4, 32).Draw(t, "bits")).Masked()
		})
		in := rapid.SliceOfN(gen, 0, 20).Draw(t, "prefixes")
		out := merge(in)
		for i := range out {
			for j := range i {
				if out[i].Overlaps(out[j]) {
					t.Fatalf("%v overlap", out)
				}
			}
		}
		contains := func(list []netip.Prefix, a netip.Addr) bool {
			return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
		}
		for _, p := range in {
			for _, a := range []netip.Addr{p.Addr(), lastAddr(p), p.Addr().Prev(), lastAddr(p).Next()} {
				if a.IsValid() && contains(in, a) != contains(out, a) {
					t.Fatalf("%s is in one of %v and %v", a, in, out)
				}
			}
		}
	})
}

func TestNames(t *testing.T) {
	for _, name := range []string{"tart0x0", "tart127x511"} {
		if r, n, ok := parseName(name); !ok || slotName(r, n) != name || len(name) > 15 {
			t.Errorf("%s: %d %d %v", name, r, n, ok)
		}
	}
	for _, name := range []string{"", "tart", "tart1", "tart1x", "tartx1", "tart01x1", "tart1x01", "tart1x512", "tart-1x1", "tart1x1 ", "tart+1x1", "tart1x1x1", "eth0"} {
		if _, _, ok := parseName(name); ok {
			t.Errorf("%q passes for a slot", name)
		}
	}
	for _, object := range []string{"custom", "custom-1x1", "custom-1x999-1", "custom-1x1-a", "denied"} {
		if _, _, ok := ownerOf(object); ok {
			t.Errorf("%q passes for a slot's chain", object)
		}
	}
	if name, generation, ok := ownerOf("custom-3x17-4-allow"); name != "tart3x17" || generation != 4 || !ok {
		t.Errorf("%s %d %v", name, generation, ok)
	}
}
