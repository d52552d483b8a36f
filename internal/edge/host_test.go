package edge

import (
	"fmt"
	"strings"
	"testing"

	"github.com/tartarus-sandbox/tartarus"
)

func TestParseHost(t *testing.T) {
	for host, want := range map[string]target{
		"49983-iabc.sb.test":            {"iabc", 49983},
		"3000-iabc.sb.test:8443":        {"iabc", 3000},
		"3000-iabc.sb.test.":            {"iabc", 3000},
		"3000-IABC.SB.Test":             {"iabc", 3000},
		"3000-iabc-client1.sb.test":     {"iabc", 3000},
		"1-a.sb.test":                   {"a", 1},
		"sb.test":                       {},
		"api.sb.test":                   {},
		"sandbox.sb.test":               {},
		"3000-.sb.test":                 {},
		"-iabc.sb.test":                 {},
		"iabc.sb.test":                  {},
		"0-iabc.sb.test":                {},
		"03000-iabc.sb.test":            {},
		"+3000-iabc.sb.test":            {},
		"65536-iabc.sb.test":            {},
		"99999999-iabc.sb.test":         {},
		"3000-iabc.evil.test":           {},
		"3000-iabc.sb.test.evil":        {},
		"3000-iabcsb.test":              {},
		"3000-iabc.xsb.test":            {},
		"3000-a.b.sb.test":              {},
		"3000-iabc_.sb.test":            {},
		"3000-iabc-client-more.sb.test": {},
		"3000-iabc.sb.test:8443:1":      {},
		"[::1]:80":                      {},
		"":                              {},
		"3000-" + strings.Repeat("a", 33) + ".sb.test": {},
	} {
		got, ok := parseHost(host, "sb.test")
		if got != want || ok != (want != target{}) {
			t.Errorf("%q: got %+v %v, want %+v", host, got, ok, want)
		}
	}
}

// Whatever a client names as host leads to nothing, or to a port and an id that are what they should be and are written in the name.
func FuzzParseHost(f *testing.F) {
	for _, host := range []string{"3000-iabc.sb.test", "49983-i0-c.sb.test:1", "sb.test", "1-a.sb.test.", "0-a.sb.test", "[::1]:80", "-", "1-ı.sb.test"} {
		f.Add(host)
	}
	f.Fuzz(func(t *testing.T, host string) {
		got, ok := parseHost(host, "sb.test")
		if !ok {
			if got != (target{}) {
				t.Fatalf("%q: refused with %+v", host, got)
			}
			return
		}
		if got.port < 1 || got.port > 65535 || !tartarus.ValidID(got.id) {
			t.Fatalf("%q: got %+v", host, got)
		}
		if !strings.HasPrefix(strings.ToLower(host), fmt.Sprintf("%d-%s", got.port, got.id)) || !strings.Contains(strings.ToLower(host), ".sb.test") {
			t.Fatalf("%q does not name %+v", host, got)
		}
	})
}

func FuzzParseHeaders(f *testing.F) {
	f.Add("iabc", "3000")
	f.Add("iabc-client", "")
	f.Add("../x", "0x10")
	f.Fuzz(func(t *testing.T, id, port string) {
		got, err := parseHeaders(id, []string{port})
		if err == nil && (!tartarus.ValidID(got.id) || !strings.HasPrefix(id, got.id) || fmt.Sprint(got.port) != port) {
			t.Fatalf("%q %q: got %+v", id, port, got)
		}
	})
}

// Every spelling that path.Clean takes for an internal route is one.
func FuzzInternal(f *testing.F) {
	f.Add("/init")
	f.Add("/x/../freeze/")
	f.Fuzz(func(t *testing.T, p string) {
		for _, name := range internals {
			if !internal("/"+name) || !internal("//"+name+"/"+p) && !strings.Contains(p, "..") {
				t.Fatalf("%q lets %s through", p, name)
			}
		}
		_ = internal(p)
	})
}

// Any other router's idea of a domain: only the configured one counts.
func TestBareDomain(t *testing.T) {
	for in, want := range map[string]string{"": "", "SB.test:8443": "sb.test", "localhost": "localhost", "a-b.c": "a-b.c"} {
		if got, err := bareDomain(in); err != nil || got != want {
			t.Errorf("%q: got %q, %v", in, got, err)
		}
	}
}
