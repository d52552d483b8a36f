package gvisor

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

func TestLinks(t *testing.T) {
	conf, err := newConfig(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		address, gateway string
		routes           []string
		v6               bool
	}{
		"inside":  {"10.1.2.3/24", "10.1.2.1", []string{"10.1.2.0/24"}, false},
		"outside": {"10.1.2.3/32", "169.254.0.1", []string{"10.1.2.3/32", "169.254.0.1/32"}, false},
		"six":     {"fd00::2/64", "fd00::1", []string{"fd00::/64"}, true},
		"none":    {"10.1.2.3/24", "", []string{"10.1.2.0/24"}, false},
	} {
		i := &vmm.Interface{MAC: "02:00:00:00:00:02", GatewayMAC: "02:00:00:00:00:01", Address: netip.MustParsePrefix(c.address)}
		if c.gateway != "" {
			i.Gateway = netip.MustParseAddr(c.gateway)
		}
		args, err := links(conf, i, os.Stdin, true)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		link := args.FDBasedLinks[0]
		var routes []string
		for _, r := range link.Routes {
			routes = append(routes, r.Destination.String())
		}
		if strings.Join(routes, " ") != strings.Join(c.routes, " ") {
			t.Errorf("%s: routes %v, want %v", name, routes, c.routes)
		}
		if link.Addresses[0].String() != c.address || link.MTU != 1500 || link.LinkAddress.String() != i.MAC || !args.IsRestore {
			t.Errorf("%s: link %+v", name, link)
		}
		def4, def6 := args.Defaultv4Gateway.Route.Gateway, args.Defaultv6Gateway.Route.Gateway
		switch {
		case c.gateway == "" && (def4 != nil || def6 != nil || len(link.Neighbors) != 0):
			t.Errorf("%s: a default route to nowhere", name)
		case c.gateway != "" && c.v6 && (def4 != nil || def6.String() != c.gateway):
			t.Errorf("%s: default routes %v, %v", name, def4, def6)
		case c.gateway != "" && !c.v6 && (def6 != nil || def4.String() != c.gateway):
			t.Errorf("%s: default routes %v, %v", name, def4, def6)
		case c.gateway != "" && (link.Neighbors[0].IP.String() != c.gateway || link.Neighbors[0].HardwareAddr.String() != i.GatewayMAC):
			t.Errorf("%s: neighbours %+v", name, link.Neighbors)
		}
	}
	if args, err := links(conf, nil, nil, false); err != nil || len(args.FDBasedLinks) != 0 || len(args.LoopbackLinks) != 1 {
		t.Errorf("no network gives %+v, %v", args, err)
	}
	for _, bad := range []vmm.Interface{
		{MAC: "x", Address: netip.MustParsePrefix("10.0.0.2/24")},
		{MAC: "02:00:00:00:00:02", GatewayMAC: "x", Gateway: netip.MustParseAddr("10.0.0.1"), Address: netip.MustParsePrefix("10.0.0.2/24")},
	} {
		if _, err := links(conf, &bad, nil, false); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

func TestExcerpt(t *testing.T) {
	for in, want := range map[string]string{
		"":                                      "",
		"plain\n":                               "plain",
		"noise\npanic: it broke\n\ngoroutine 1": "panic: it broke | goroutine 1",
		"\x1b[31mred\x07":                       "[31mred",
	} {
		got := excerpt(in)
		if got != want && strings.ReplaceAll(got, " | ", "") != want {
			t.Errorf("%q gives %q, want %q", in, got, want)
		}
	}
	if got := excerpt(strings.Repeat("x", 1<<20)); len(got) > 1000 {
		t.Errorf("an excerpt of %d bytes", len(got))
	}
}
