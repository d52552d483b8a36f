package handover

import (
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

func sample() Machine {
	return Machine{
		Args: []string{"/bin/x", "a b"}, Env: []string{"A=ü"}, Hostname: "h", PIDs: 7, Entropy: []byte{1, 2}, Time: time.Unix(5, 0).UTC(),
		Interface: &Interface{MAC: "02:00:00:00:00:02", Address: netip.MustParsePrefix("10.0.0.1/31"), Gateway: netip.MustParseAddr("10.0.0.0"), MTU: 1500},
	}
}

func TestParameter(t *testing.T) {
	want := sample()
	p, err := want.Parameter()
	if err != nil || strings.ContainsAny(p, " \"") {
		t.Fatalf("%q %v", p, err)
	}
	got, err := FromCommandLine("quiet " + p + " panic=-1")
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v %v", got, err)
	}
	want.Env = []string{strings.Repeat("x", MaxParameter)}
	if _, err := want.Parameter(); !tartarus.Is(err, tartarus.TooLarge) {
		t.Errorf("too much: %v", err)
	}
	if _, err := FromCommandLine("quiet"); !tartarus.Is(err, tartarus.NotFound) {
		t.Errorf("nothing: %v", err)
	}
	for _, bad := range []string{"!", "bm90", "eyJwaWRzIjotMX0"} { // not base64, not JSON, pids -1
		if _, err := FromCommandLine(parameter + bad); !tartarus.Is(err, tartarus.Invalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestFrames(t *testing.T) {
	body, err := sample().body()
	if err != nil {
		t.Fatal(err)
	}
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	f := frame{kind: tell, nonce: [16]byte{1, 2, 3}, body: body}
	b, err := f.encode(mac)
	if err != nil {
		t.Fatal(err)
	}
	m, reply, ok := Answer(append(b, 0, 0, 0), mac) // with padding
	if !ok || m.Args != nil || m.Env != nil || m.PIDs != 0 || m.Hostname != "h" || m.Interface.MTU != 1500 {
		t.Errorf("%+v %t", m, ok)
	}
	if back, ok := parse(reply); !ok || back.kind != done || back.nonce != f.nonce {
		t.Errorf("reply %x", reply)
	}
	if _, _, ok := Answer(reply, mac); ok {
		t.Error("a reply was answered")
	}
	for n := range b {
		if _, _, ok := Answer(b[:n], mac); ok {
			t.Errorf("cut at %d it is taken", n)
		}
	}
	f.body = make([]byte, MaxFrame)
	if _, err := f.encode(mac); !tartarus.Is(err, tartarus.TooLarge) {
		t.Errorf("a large one: %v", err)
	}
}

func FuzzAnswer(f *testing.F) {
	b, _ := frame{kind: tell, body: []byte(`{"interface":{"mac":"02:00:00:00:00:02","address":"10.0.0.1/31"}}`)}.encode(make([]byte, 6))
	f.Add(b)
	f.Fuzz(func(t *testing.T, in []byte) {
		if m, _, ok := Answer(in, make([]byte, 6)); ok && (m.Interface == nil || m.Validate() != nil) {
			t.Errorf("%+v is taken", m)
		}
	})
}
